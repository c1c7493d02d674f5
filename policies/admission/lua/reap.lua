-- Settle reservations whose lease has ended at their hold. ARGV: epoch, how many at most.
-- Answers {code, id, hold, …}; code 4: the epoch is not the caller's.
if redis.call('GET', 'airi:epoch') ~= ARGV[1] then return {4} end
local done = reap(clock(), tonumber(ARGV[2]))
return {0, unpack(done)}
