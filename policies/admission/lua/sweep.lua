-- Forget idle rates of the tenant's hash "c". ARGV: fields to look at. Answers how many went.
local values, now, gone = redis.call('HMGET', P .. 'c', unpack(ARGV)), clock(), {}
for i, field in ipairs(ARGV) do
  local value = tonumber(values[i] or nil)
  local idle = value and (string.sub(field, -2) == '|n' and value <= 0 or string.sub(field, -2) ~= '|n' and value < now)
  if idle then gone[#gone + 1] = field end
end
if #gone > 0 then redis.call('HDEL', P .. 'c', unpack(gone)) end
return #gone
