-- A process says that it lives. KEYS[1] is unused but for the shape; ARGV: process.
-- Answers {epoch, name of the rebuild under way or '', snapshot, keys, ledger, entries not yet in SQL}.
local now = clock()
redis.call('HSET', 'airi:processes', ARGV[1], now)
local v = redis.call('HMGET', 'airi:versions', 'snapshot', 'keys', 'ledger')
return {redis.call('GET', 'airi:epoch') or '', redis.call('GET', 'airi:rebuild') or '', v[1] or '0', v[2] or '0',
  v[3] or '0-0', redis.call('XLEN', 'airi:ledger')}
