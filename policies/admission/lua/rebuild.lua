-- Set one tenant's money and concurrency anew from what is known (policies/epoch.py), in one step.
-- ARGV[1]: {ids that the ledger has settled, suffixes of money hashes there are, suffixes of users' hashes there are,
--   spent {suffix, field, micro-dollars, expires at (s; 0 never), …}, lease in ms, name of the rebuild};
-- then triples: 'o' or 't', id, raw: open reservations to put back, tombstones to leave. Answers how many are open
-- now, or -1: another rebuild is at work.
local settled, money, users, spent, lease, name = unpack(cmsgpack.unpack(ARGV[1]))
if redis.call('GET', 'airi:rebuild') ~= name then return -1 end
local now, records = clock(), {}
for _, id in ipairs(settled) do redis.call('DEL', P .. 'r:' .. id) end
for i = 2, #ARGV, 3 do
  if ARGV[i] == 't' then
    redis.call('SET', P .. 'r:' .. ARGV[i + 1], ARGV[i + 2], 'PX', TOMBSTONE_MS)
  elseif redis.call('SET', P .. 'r:' .. ARGV[i + 1], ARGV[i + 2], 'NX') then
    redis.call('ZADD', P .. 'open', now + lease * 1000, ARGV[i + 1])
  end
end
for _, id in ipairs(redis.call('ZRANGE', P .. 'open', 0, -1)) do
  local raw = redis.call('GET', P .. 'r:' .. id)
  local record = raw and cmsgpack.unpack(raw)
  if record and record[1] == 'o' then
    records[#records + 1] = record
  else
    redis.call('ZREM', P .. 'open', id)
  end
end
for _, suffix in ipairs(money) do redis.call('DEL', P .. suffix) end
users[#users + 1] = 'c'
for _, suffix in ipairs(users) do
  local found = redis.call('HGETALL', P .. suffix)
  for i = 1, #found, 2 do
    local requests, tokens = struct.unpack(COUNTERS, found[i + 1])
    redis.call('HSET', P .. suffix, found[i], struct.pack(COUNTERS, requests, tokens, 0))
  end
end
for i = 1, #spent, 4 do
  redis.call('HSET', P .. spent[i], 's' .. spent[i + 1], spent[i + 2], 'h' .. spent[i + 1], 0)
  if spent[i + 3] > 0 then redis.call('EXPIREAT', P .. spent[i], spent[i + 3]) end
end
for _, record in ipairs(records) do
  for _, group in ipairs(record[7]) do
    hold(group[1], group[2], group[3], math.floor(now / 1000000) + 31 * DAY)
  end
  take_slots(record[8])
end
if #records > 0 then redis.call('SADD', 'airi:tenants', records[1][10][2]) end
return #records
