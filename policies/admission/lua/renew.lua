-- Renew leases. ARGV: lease in ms, then pairs of id and cost so far in micro-dollars (0: not known).
-- A soft budget's hold grows with the cost. Answers one number a reservation: 1 renewed, 0 not open.
local answer, lease = {}, clock() + ARGV[1] * 1000
for i = 2, #ARGV, 2 do
  local id, cost = ARGV[i], tonumber(ARGV[i + 1])
  local open = redis.call('ZSCORE', P .. 'open', id)
  answer[#answer + 1] = open and 1 or 0
  if open then
    redis.call('ZADD', P .. 'open', 'XX', lease, id)
    local raw = cost > 0 and redis.call('GET', P .. 'r:' .. id)
    local record = raw and cmsgpack.unpack(raw)
    if record and record[1] == 'o' then
      local grown = false
      for _, group in ipairs(record[7]) do
        local more, any = {}, false
        for b, amount in ipairs(group[3]) do
          more[b] = math.max(0, cost - amount)
          if more[b] > 0 then any = true end
          group[3][b] = amount + more[b]
        end
        if any then
          grown = true
          if redis.call('EXISTS', P .. group[1]) == 1 then hold(group[1], group[2], more, 0) end
        end
      end
      if grown then
        record[4] = math.max(record[4], cost)
        redis.call('SET', P .. 'r:' .. id, seal('o', record, request_bytes(raw, record)))
      end
    end
  end
end
return answer
