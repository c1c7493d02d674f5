-- Shared by all scripts of admission; put in front of each when it is loaded. Redis 6.2's Lua.
--
-- KEYS[1] is the tenant's prefix, "airi:{TENANT}:"; every key of a tenant begins with it, so all live in one slot:
--   c                 hash: rates and concurrency, a field each bounded scope. Three doubles (COUNTERS): the theoretical
--                     arrival times (µs) of GCRA for requests and for tokens, and the calls in flight
--   u:USER            hash: the same of one end user (field "user"); expires
--   m:LETTER:START    hash: money of one calendar window (UTC, START in Unix seconds). Fields "s|SCOPE|BUDGET"
--                     (spent) and "h|SCOPE|BUDGET" (held), in micro-dollars; expires three days after the window
--   r:ID              a reservation (msgpack array, see RECORD), later its tombstone, which expires
--   open              sorted set: ids of open reservations by the end of their lease (µs)
--   i:DIGEST          claim of an idempotency key, expires; x:RUN: that run is cancelled
-- Global keys: airi:epoch, airi:versions, airi:ledger (stream), airi:tenants (set).
--
-- RECORD: {state, process, reserved_at µs, hold, worst case, granted output tokens, money, slots, length of the request's
--          bytes, request}
--   state: "o" open, "p" reaped (a late settlement may still post its difference), "x" released before it was seen,
--          "s" settled; then the rest is the entry's stream id, cause, amount, hold and excess
--   money: {{key suffix, {field, field of the hold, …}, {hold, …}}, …}
--   slots: {{key suffix, {field, …}, {µs per token, or 0 without such a limit, …}, {GCRA's line of tokens before this
--          call, …}, {1 where concurrency was taken, else 0, …}}, …}
--   request: as policies/admission/wire.py writes it, always the last bytes of a record, so that it is never encoded again
local P = KEYS[1]
local DAY = 86400
local TOMBSTONE_MS = 2 * DAY * 1000
local SETTLED_MS = 5 * 60 * 1000 -- a process that asks again later knows what 'unknown' means (book.py)
local WINDOW_GRACE_S = 3 * DAY
local USER_TTL_MS = 2 * 3600 * 1000
local CLAIM_MS = DAY * 1000
local COUNTERS = '<ddd' -- as bytes: writing and reading decimal numbers costs more than all the rest of a limit

-- Unix time in µs. One line, so that the simulation can put another clock in its place.
local function clock() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end

-- First day (since 1970) of the month that holds `day`. Source: H. Hinnant, "chrono-Compatible Low-Level Date
-- Algorithms", civil_from_days.
local function month_start(day)
  local z = day + 719468
  local doe = z % 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  return day - (doy - math.floor((153 * mp + 2) / 5))
end

-- Start and end (Unix seconds) of the calendar window that holds `now` (µs); the total has no end (0).
local function window(letter, now)
  local s = math.floor(now / 1000000)
  if letter == 'd' then local a = s - s % DAY return a, a + DAY end
  if letter == 'm' then
    local first = month_start(math.floor(s / DAY))
    return first * DAY, month_start(first + 31) * DAY
  end
  if letter == 'h' then local a = s - s % 3600 return a, a + 3600 end
  if letter == 'i' then local a = s - s % 60 return a, a + 60 end
  if letter == 'w' then -- Monday; 1970-01-01 was a Thursday
    local day = math.floor(s / DAY)
    local a = (day - (day + 3) % 7) * DAY
    return a, a + 7 * DAY
  end
  return 0, 0
end

-- Charge `usd` to every budget of a record and, when `free`, take its holds off. A window that has expired is gone.
local function charge(money, usd, free)
  for _, group in ipairs(money) do
    local key, fields, holds = P .. group[1], group[2], group[3]
    local values, set = redis.call('HMGET', key, unpack(fields)), {}
    for i = 1, #holds do
      if values[2 * i - 1] then
        set[#set + 1] = fields[2 * i - 1]
        set[#set + 1] = values[2 * i - 1] + usd
        if free then
          set[#set + 1] = fields[2 * i]
          set[#set + 1] = values[2 * i] - holds[i]
        end
      end
    end
    if #set > 0 then redis.call('HSET', key, unpack(set)) end
  end
end

-- Give concurrency back and move GCRA's line by the tokens that were not used (or used beyond the estimate). Of what
-- was not used only the part that has not drained yet comes back: the call's own share of the line begins at `line`.
local function free_slots(slots, now, estimated, actual)
  for _, group in ipairs(slots) do
    local key, fields, set = P .. group[1], group[2], {}
    local values = redis.call('HMGET', key, unpack(fields))
    for i = 1, #fields do
      local per_token, counted = group[3][i], group[5][i] == 1
      local moves = per_token > 0 and actual ~= estimated
      if values[i] and (moves or counted) then
        local requests, tokens, running = struct.unpack(COUNTERS, values[i])
        if counted then running = math.max(0, running - 1) end
        if moves and actual > estimated then
          tokens = math.max(tokens, now) + (actual - estimated) * per_token
        elseif moves then
          local line = group[4][i]
          tokens = tokens + math.min(0, math.max(now, line + actual * per_token) - (line + estimated * per_token))
        end
        set[#set + 1] = fields[i]
        set[#set + 1] = struct.pack(COUNTERS, requests, tokens, running)
      end
    end
    if #set > 0 then redis.call('HSET', key, unpack(set)) end
  end
end

-- A record's bytes: a MessagePack array of ten of which the request is there already.
local function seal(state, r, request_bytes)
  return '\154' .. cmsgpack.pack(state, r[2], r[3], r[4], r[5], r[6], r[7], r[8], #request_bytes) .. request_bytes
end

local function request_bytes(raw, record)
  return string.sub(raw, -record[9])
end

-- Append the ledger entry (wire.Entry: an array of eleven); return its id in the stream and the entry.
local function append(raw, record, cause, usd, excess, now, settlement_bytes)
  local charged = {}
  for _, group in ipairs(record[7]) do
    for i = 1, #group[3] do charged[#charged + 1] = group[1] .. string.sub(group[2][2 * i - 1], 2) end
  end
  local entry = '\155' .. cmsgpack.pack(record[10][1] .. '/' .. cause, cause, usd, record[4], excess, record[3], now,
    record[2], charged) .. request_bytes(raw, record) .. settlement_bytes
  return redis.call('XADD', 'airi:ledger', '*', 'e', entry), entry
end

local function leave_settled(id, stream_id, cause, amount, record)
  local tombstone = cmsgpack.pack({'s', stream_id, cause, amount, record[4], math.max(0, amount - record[5])})
  redis.call('SET', P .. 'r:' .. id, tombstone, 'PX', SETTLED_MS)
end

-- Close an open reservation at `usd`. `state` is "s" or "p"; a reaped one keeps its money groups for a late settlement.
local function finish(id, raw, record, usd, state, cause, now, tokens, settlement_bytes)
  charge(record[7], usd, true)
  free_slots(record[8], now, record[10][10], tokens)
  local stream_id, entry = append(raw, record, cause, usd, math.max(0, usd - record[5]), now, settlement_bytes)
  if state == 'p' then
    record[4], record[8] = usd, {}
    redis.call('SET', P .. 'r:' .. id, seal('p', record, request_bytes(raw, record)), 'PX', TOMBSTONE_MS)
  else
    leave_settled(id, stream_id, cause, usd, record)
  end
  redis.call('ZREM', P .. 'open', id)
  return stream_id, entry
end

-- Settle up to `limit` reservations whose lease has ended at their hold; return their ids and holds.
local function reap(now, limit)
  local done = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'open', '-inf', now, 'LIMIT', 0, limit)) do
    local raw = redis.call('GET', P .. 'r:' .. id)
    local record = raw and cmsgpack.unpack(raw)
    if record and record[1] == 'o' then
      done[#done + 1] = id
      done[#done + 1] = record[4]
      finish(id, raw, record, record[4], 'p', 'reaped', now, record[10][10], '\144')
    else
      redis.call('ZREM', P .. 'open', id)
    end
  end
  return done
end

-- Put holds on a window hash; fields that are new begin at zero. `values` spares reading what was read already.
local function hold(key_suffix, fields, holds, expire_at_s, values)
  local key, set, new = P .. key_suffix, {}, false
  values = values or redis.call('HMGET', key, unpack(fields))
  for i = 1, #holds do
    local spent, held = values[2 * i - 1], values[2 * i]
    if not spent then
      new = true
      set[#set + 1] = fields[2 * i - 1]
      set[#set + 1] = 0
    end
    set[#set + 1] = fields[2 * i]
    set[#set + 1] = (held or 0) + holds[i]
  end
  redis.call('HSET', key, unpack(set))
  if new and expire_at_s > 0 then redis.call('EXPIREAT', key, expire_at_s + WINDOW_GRACE_S) end
end

-- Take concurrency without asking (a reservation that exists already is put back).
local function take_slots(slots)
  for _, group in ipairs(slots) do
    local key = P .. group[1]
    for i, field in ipairs(group[2]) do
      if group[5][i] == 1 then
        local value = redis.call('HGET', key, field)
        local requests, tokens, running = 0, 0, 0
        if value then requests, tokens, running = struct.unpack(COUNTERS, value) end
        redis.call('HSET', key, field, struct.pack(COUNTERS, requests, tokens, running + 1))
      end
    end
  end
end
