-- Reserve on every scope of a call or on none.
-- ARGV: epoch that the caller believes in, its process, limits (LimitTable), request (wire.py).
-- Answers a flat array that begins with {code, snapshot, keys, ledger}: versions of configuration and key log, and the
-- stream id up to which the ledger is in SQL. Codes:
--   0 admitted: granted output tokens, hold, record, then limit, remaining, reset ms of requests and of tokens
--   1 refused: kind, scope, limit, remaining, retry after ms (0: time does not help)
--   2 replay: reply reference · 3 the same key is in progress · 4 the same key came with another body · 5 id is known
local epoch, process = ARGV[1], ARGV[2]
local limits, q = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
local id, tokens, forced = q[1], q[10], q[20] == 1
local now = clock()
local versions = redis.call('HMGET', 'airi:versions', 'snapshot', 'keys', 'ledger')
local answer = {0, versions[1] or '0', versions[2] or '0', versions[3] or '0-0'}
local function reply(code, ...)
  answer[1] = code
  for i, value in ipairs({...}) do answer[4 + i] = value end
  return answer
end

local claim = q[17] ~= '' and P .. 'i:' .. q[17]
if claim and not forced then
  local raw = redis.call('GET', claim)
  if raw then
    local state, body, holder, reference = unpack(cmsgpack.unpack(raw))
    if body ~= q[18] then return reply(4) end
    if state == 'd' then return reply(2, reference) end
    local lease = redis.call('ZSCORE', P .. 'open', holder)
    if lease and tonumber(lease) > now and holder ~= id then return reply(3, math.ceil((lease - now) / 1000)) end
  end
end
if q[7] ~= '' and not forced and redis.call('EXISTS', P .. 'x:' .. q[7]) == 1 then
  return reply(1, 'cancelled', 'run', 0, 0, 0)
end

-- limits: {rates of c, rates of the user's hash, money groups}; rates: {fields, requests a minute of each, tokens a
-- minute, concurrent calls}, -1 where there is no such limit
local shared, personal, money = limits[1], limits[2], limits[3]
if #money > 0 and redis.call('GET', 'airi:epoch') ~= epoch and not forced then
  return reply(1, 'epoch', 'tenant', 0, 0, 1000)
end

local SLACK = 1 -- µs: what adding floating-point intervals may lose
local MINUTE = 60000000 -- µs
local fail, slots, sets, rates, holds, granted, any_hard, worst

local function refuse(kind, scope, limit, remaining, retry_ms)
  if forced then return end
  retry_ms = math.ceil(retry_ms)
  -- Of several reasons the one that lasts longest; a call that can never fit is told so.
  if not fail or kind == 'too_large' or (fail[1] ~= 'too_large' and retry_ms > fail[5]) then
    fail = {kind, scope, limit, remaining, retry_ms}
  end
end

-- GCRA: the line moves by cost × interval; it may be at most one minute (the burst) ahead of now. Returns where it was
-- (not before now), where it is then, and the interval.
local function check_rate(kind, scope, limit, cost, line, now)
  local interval = MINUTE / limit
  line = math.max(line, now)
  local moved = line + cost * interval
  local ahead = moved - now
  if cost > limit then
    refuse('too_large', scope, limit, cost, 0)
  elseif ahead > MINUTE + SLACK then
    refuse(kind, scope, limit, math.floor((MINUTE - (line - now)) / interval), (ahead - MINUTE) / 1000)
  end
  local tightest, remaining = rates[kind], math.floor((MINUTE + SLACK - ahead) / interval)
  if not tightest or remaining < tightest[2] then rates[kind] = {limit, remaining, math.ceil(ahead / 1000)} end
  return line, moved, interval
end

local function check_rates(suffix, wanted)
  local fields = wanted[1]
  if #fields == 0 then return end
  local values, set = redis.call('HMGET', P .. suffix, unpack(fields)), {}
  local per, lines, counted = {}, {}, {}
  for i = 1, #fields do
    local scope, most = fields[i], wanted[4][i]
    local requests, spent, running = 0, 0, 0
    if values[i] then requests, spent, running = struct.unpack(COUNTERS, values[i]) end
    per[i], lines[i], counted[i] = 0, 0, 0
    if wanted[2][i] >= 0 then requests = select(2, check_rate('requests', scope, wanted[2][i], 1, requests, now)) end
    if wanted[3][i] >= 0 then
      lines[i], spent, per[i] = check_rate('tokens', scope, wanted[3][i], tokens, spent, now)
    end
    if most >= 0 then
      if running >= most then refuse('concurrency', scope, most, 0, 1000) end
      running, counted[i] = running + 1, 1
    end
    set[2 * i - 1], set[2 * i] = scope, struct.pack(COUNTERS, requests, spent, running)
  end
  sets[#sets + 1] = {suffix, set}
  slots[#slots + 1] = {suffix, fields, per, lines, counted}
end

local function check_money()
  local input, price, least = q[11], q[12], q[13]
  granted = q[14]
  local function lower(available, kind, scope, limit, remaining, retry_ms)
    local fits = available >= input and (price > 0 and math.floor((available - input) * 1000000 / price) or granted) or -1
    if fits < least then refuse(kind, scope, limit, math.max(0, remaining), retry_ms) end
    if fits < granted and not forced then granted = math.max(fits, 0) end
  end
  if q[19] >= 0 then lower(q[19], 'run_budget', 'run', q[19], q[19], 0) end
  any_hard = false
  for g, group in ipairs(money) do
    -- group: {letter, fields {"s|SCOPE|BUDGET", "h|SCOPE|BUDGET", …}, limits, 1 for hard and 0 for soft, …}
    local start, finish_s = window(group[1], now)
    local suffix = 'm:' .. group[1] .. ':' .. string.format('%d', start)
    local values, hard = redis.call('HMGET', P .. suffix, unpack(group[2])), group[4]
    local retry_ms = finish_s > 0 and finish_s * 1000 - now / 1000 or 0
    for b, limit in ipairs(group[3]) do
      local left = limit - (values[2 * b - 1] or 0) - (values[2 * b] or 0)
      if hard[b] == 1 then
        any_hard = true
        lower(left, 'budget', group[2][2 * b - 1], limit, left, retry_ms)
      elseif q[15] > left then
        refuse('budget', group[2][2 * b - 1], limit, math.max(0, left), retry_ms)
      end
    end
    holds[g] = {suffix, group[2], hard, finish_s, values}
  end
  worst = input + math.ceil(granted * price / 1000000)
end

local function check()
  fail, slots, sets, rates, holds = nil, {}, {}, {}, {}
  check_rates('c', shared)
  if q[21] ~= '' then check_rates('u:' .. q[21], personal) end
  check_money()
end

check()
if fail and fail[1] == 'concurrency' and redis.call('GET', 'airi:epoch') == epoch then
  if #reap(now, 16) > 0 then check() end -- slots of dead processes come back before anybody is refused for them
end
if fail then
  fail[2] = string.gsub(string.gsub(fail[2], '^s|', ''), '|', ' ') -- "s|org|monthly" is a budget's field
  return reply(1, unpack(fail))
end

local estimate = math.min(q[15], worst)
local held = any_hard and worst or estimate
local record_money = {}
for g, h in ipairs(holds) do
  local amounts = {}
  for b, hard in ipairs(h[3]) do amounts[b] = hard == 1 and worst or estimate end
  record_money[g] = {h[1], h[2], amounts}
end
local record = seal('o', {'o', process, now, held, worst, granted, record_money, slots}, ARGV[4])
-- The first write decides: an id that is known already (a repeated command, or one released before it came) ends here.
if not redis.call('SET', P .. 'r:' .. id, record, 'NX') then return reply(5) end
redis.call('ZADD', P .. 'open', now + q[16] * 1000, id)
redis.call('SADD', 'airi:tenants', q[2])
for _, s in ipairs(sets) do redis.call('HSET', P .. s[1], unpack(s[2])) end
if q[21] ~= '' and #personal[1] > 0 then redis.call('PEXPIRE', P .. 'u:' .. q[21], USER_TTL_MS) end
for g, h in ipairs(holds) do hold(h[1], h[2], record_money[g][3], h[4], h[5]) end
if claim then redis.call('SET', claim, cmsgpack.pack({'c', q[18], id, ''}), 'PX', CLAIM_MS) end
local r, t = rates.requests or {-1, -1, -1}, rates.tokens or {-1, -1, -1}
return reply(0, granted, held, record, r[1], r[2], r[3], t[1], t[2], t[3])
