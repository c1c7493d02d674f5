-- Forget idle scopes of the tenant's hash "c". ARGV: fields to look at. Answers how many went.
local values, now, gone = redis.call('HMGET', P .. 'c', unpack(ARGV)), clock(), {}
for i, field in ipairs(ARGV) do
  if values[i] then
    local requests, tokens, running = struct.unpack(COUNTERS, values[i])
    if requests < now and tokens < now and running <= 0 then gone[#gone + 1] = field end
  end
end
if #gone > 0 then redis.call('HDEL', P .. 'c', unpack(gone)) end
return #gone
