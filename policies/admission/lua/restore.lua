-- Put a reservation back that Redis has lost. ARGV: id, record, lease in ms. Answers 1, or 0 when the id is known.
local id, record = ARGV[1], cmsgpack.unpack(ARGV[2])
if not redis.call('SET', P .. 'r:' .. id, ARGV[2], 'NX') then return 0 end
redis.call('ZADD', P .. 'open', clock() + ARGV[3] * 1000, id)
redis.call('SADD', 'airi:tenants', record[10][2])
-- A window hash that is made anew here outlives its window by the longest window at least.
for _, group in ipairs(record[7]) do hold(group[1], group[2], group[3], math.floor(clock() / 1000000) + 31 * DAY) end
take_slots(record[8])
return 1
