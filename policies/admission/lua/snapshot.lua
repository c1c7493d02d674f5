-- Everything that counts for the books of one tenant at one moment.
-- ARGV: tenant, suffixes of the money hashes. Answers {now µs, {hash, …}, {open record, …}, {stream entry, …}}.
local hashes, records, entries = {}, {}, {}
for i = 2, #ARGV do hashes[i - 1] = redis.call('HGETALL', P .. ARGV[i]) end
for _, id in ipairs(redis.call('ZRANGE', P .. 'open', 0, -1)) do
  records[#records + 1] = redis.call('GET', P .. 'r:' .. id) or nil
end
for _, item in ipairs(redis.call('XRANGE', 'airi:ledger', '-', '+')) do
  local entry = item[2][2]
  if cmsgpack.unpack(entry)[10][2] == ARGV[1] then entries[#entries + 1] = entry end
end
return {string.format('%.0f', clock()), hashes, records, entries}
