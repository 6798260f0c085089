-- As of when: what a row must remember so that late events leave it as timely ones would have.
--
-- A count taken at T says what was on the shelf at T: the row is the count plus all that happened
-- after T. So a row keeps the moment of the count that it stands on, and its recent changes with
-- the moments at which they happened; a count that comes late adds up those after it.
--
-- Row column `counted`: '<ms>-<first 8 digits of the operation's id>' of that count.
-- String `recent`: 12 bytes a change, in the order in which they came: when it happened (ms, 48
-- bits, big-endian) and its units (signed, 48 bits). Where changes had to be dropped, one with
-- FLOOR units says up to when they are missing. Kept for limits.recent_ms after the last change.

local DELTA_FORM, DELTA_BYTES = '>I6i6', 12
local FLOOR = -140737488355328
local MAX_DELTAS, DELTAS_LEFT, TIDY_EVERY = 4096, 3072, 256
local TIE_DIGITS = 8

local pasts, touched_pasts = {}, {}

-- The past of a row. Fails where `recent_key` is no string, while nothing is written yet.
local function past_of(row, recent_key)
  local past = pasts[row.key]
  if past then return past end
  local at, by = string.match(redis.call('HGET', row.key, 'counted') or '', '^(%d+)-(%x+)$')
  past = {
    row_key = row.key, key = recent_key,
    size = redis.call('STRLEN', recent_key) / DELTA_BYTES,
    counted_at = tonumber(at) or 0, counted_by = by or '', added = {},
  }
  pasts[row.key] = past
  return past
end

local function touch_past(past)
  if not past.touched then
    past.touched = true
    touched_pasts[#touched_pasts + 1] = past
  end
end

-- The changes as a list of {at, units}; from here on the string is written anew.
local function deltas_of(past)
  if past.deltas then return past.deltas end
  local text, deltas = redis.call('GET', past.key) or '', {}
  text = text .. table.concat(past.added)
  for place = 1, #text - DELTA_BYTES + 1, DELTA_BYTES do
    local at, units = struct.unpack(DELTA_FORM, text, place)
    deltas[#deltas + 1] = {at, units}
  end
  past.deltas = deltas
  return deltas
end

-- When something happens that does not say when: now, and after the count that the row stands on.
local function undated(past)
  return math.max(now, past.counted_at + 1)
end

local function keep_after(past, at)
  local kept = {}
  for _, delta in ipairs(deltas_of(past)) do
    if delta[1] > at then kept[#kept + 1] = delta end
  end
  past.deltas, past.size = kept, #kept
end

-- Drops what no count can ask for any more; where MAX_DELTAS are left, all but the latest go too.
local function tidy(past)
  keep_after(past, now - limits.recent_ms)
  local moments = {}
  for i, delta in ipairs(past.deltas) do moments[i] = delta[1] end
  if #moments < MAX_DELTAS then return end
  table.sort(moments)
  local floor = moments[#moments - DELTAS_LEFT]
  keep_after(past, floor)
  table.insert(past.deltas, 1, {floor, FLOOR})
  past.size = #past.deltas
end

-- Remembers that `units` came or went at `at`.
local function add_delta(past, at, units)
  if units == 0 or at <= now - limits.recent_ms then return end
  touch_past(past)
  past.size = past.size + 1
  if past.deltas then
    past.deltas[#past.deltas + 1] = {at, units}
  else
    past.added[#past.added + 1] = struct.pack(DELTA_FORM, at, units)
  end
  if past.size % TIDY_EVERY == 0 then tidy(past) end
end

-- The moment of a count that does not say when: after all that happened so far.
local function undated_count(past)
  local at = undated(past)
  for _, delta in ipairs(deltas_of(past)) do at = math.max(at, delta[1]) end
  return at
end

-- Counts of one moment are ordered by the ids of their operations.
local function is_newer_count(past, at, id)
  if at ~= past.counted_at then return at > past.counted_at end
  return string.sub(id, 1, TIE_DIGITS) > past.counted_by
end

-- Units that came (or, negative, went) after `at`; nil where not all of that is known any more.
local function units_after(past, at)
  if at <= now - limits.recent_ms then return nil end
  local sum = 0
  for _, delta in ipairs(deltas_of(past)) do
    if delta[1] > at then
      if delta[2] == FLOOR then return nil end
      sum = sum + delta[2]
    end
  end
  return sum
end

local function stand_on_count(past, at, id)
  touch_past(past)
  past.counted_at, past.counted_by = at, string.sub(id, 1, TIE_DIGITS)
  past.is_counted = true
  keep_after(past, at)
end

local function write_pasts()
  for i = 1, #touched_pasts do
    local past = touched_pasts[i]
    if past.is_counted then
      redis.call('HSET', past.row_key, 'counted',
        integer(past.counted_at) .. '-' .. past.counted_by)
    end
    if past.deltas and #past.deltas == 0 then
      redis.call('DEL', past.key)
    else
      if past.deltas then
        local texts = {}
        for j, delta in ipairs(past.deltas) do
          texts[j] = struct.pack(DELTA_FORM, delta[1], delta[2])
        end
        redis.call('SET', past.key, table.concat(texts))
      elseif #past.added > 0 then
        redis.call('APPEND', past.key, table.concat(past.added))
      end
      redis.call('PEXPIRE', past.key, integer(limits.recent_ms))
    end
  end
end
