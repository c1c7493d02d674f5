-- Replace a reservation's holds by what the call cost and write the ledger entry, once.
-- ARGV: epoch, settlement (wire.py). Answers {code, …}:
--   0 settled or posted: stream id, entry · 1 was settled before: the entry's stream id, cause, amount, hold, excess
--   (nothing when SQL is known to have it) · 2 unknown reservation · 3 tombstone left
--   4 the epoch is not the caller's: money is being rebuilt, try again later
if redis.call('GET', 'airi:epoch') ~= ARGV[1] then return {4} end
local s = cmsgpack.unpack(ARGV[2])
local id, usd = s[1], s[2]
local key = P .. 'r:' .. id
local now = clock()
local raw = redis.call('GET', key)
if not raw then
  if s[9] ~= 1 then return {2} end
  -- The caller gave up on an admission that may still be on its way: should it arrive, it finds this.
  redis.call('SET', key, cmsgpack.pack({'x'}), 'PX', SETTLED_MS)
  return {3}
end
local record = cmsgpack.unpack(raw)
local state = record[1]
if state == 's' then return {1, record[2], record[3], record[4], record[5], record[6]} end
if state == 'x' then return {1} end

local request, stream_id, entry = record[10], nil, nil
if state == 'o' then
  stream_id, entry = finish(id, raw, record, usd, 's', 'settled', now, s[3], ARGV[2])
else
  -- Reaped at its hold already: post the difference.
  charge(record[7], usd - record[4], false)
  stream_id, entry = append(raw, record, 'late', usd - record[4], math.max(0, usd - record[5]), now, ARGV[2])
  leave_settled(id, stream_id, 'late', usd - record[4], record)
end
if request[17] ~= '' then
  local claim = P .. 'i:' .. request[17]
  local held = redis.call('GET', claim)
  local value = held and cmsgpack.unpack(held)
  if value and value[1] == 'c' and value[3] == id then
    if s[8] ~= '' then
      redis.call('SET', claim, cmsgpack.pack({'d', request[18], id, s[8]}), 'PX', CLAIM_MS)
    else
      redis.call('DEL', claim) -- the call failed: the next one with this key may try
    end
  end
end
return {0, stream_id, entry}
