-- Sources of events: what each has sent so far, and which of its sequence numbers are missing.
--
-- Hash feed: mode ('sequence' or 'ids'), heard_at and occurred_at (ms; when it was last heard of, and
-- the latest that it told of), and of a source with sequences watermark (all up to it have come),
-- beats (1: it has sent heartbeats), highest, skipped (numbers up to it were given up on), and ahead (msgpack {{first, last, since}, ...}: what came past the watermark, and when).
-- String prints: 4 bytes of the fingerprint of each of the last PRINTS sequences, so that another
-- event under a number that was used is told from a repetition.

local MAX_RANGES, MAX_SOURCES = 1000, 1000
local PRINTS, PRINT_BYTES = 1024, 4
local SOURCE_FIELDS = {'mode', 'heard_at', 'occurred_at', 'watermark', 'highest', 'ahead',
  'skipped', 'beats'}

local sources, touched_sources = {}, {}

-- Fails where a key is not of its type, while nothing is written yet.
local function source_at(name, key, prints_key, feeds_key, feeding_key, member)
  local source = sources[key]
  if source then return source end
  local f = redis.call('HMGET', key, unpack(SOURCE_FIELDS))
  redis.call('STRLEN', prints_key)
  need_sorted_set(feeds_key)
  need_sorted_set(feeding_key)
  source = {
    name = name, key = key, prints_key = prints_key, feeds_key = feeds_key,
    feeding_key = feeding_key, member = member,
    mode = f[1] or '', heard_at = tonumber(f[2]) or 0, occurred_at = tonumber(f[3]) or 0,
    watermark = tonumber(f[4]) or 0, highest = tonumber(f[5]) or 0,
    ahead = f[6] and cmsgpack.unpack(f[6]) or {}, skipped = tonumber(f[7]) or 0,
    beats = f[8] and 1 or 0, prints = {},
  }
  sources[key] = source
  return source
end

local function hear(source, occurred_at, kind)
  if kind == 'heartbeat' then source.beats = 1 end
  if not source.touched then
    source.touched = true
    touched_sources[#touched_sources + 1] = source
  end
  source.heard_at = now
  -- A clock that is ahead must not make later events look old.
  occurred_at = math.min(occurred_at, now)
  if occurred_at > source.occurred_at then source.occurred_at = occurred_at end
end

-- False where the location has too many sources for one more: names are cheap to make up.
local function is_welcome(source)
  return source.heard_at > 0 or redis.call('ZCARD', source.feeds_key) < MAX_SOURCES
end

-- Where in `ahead` a number is, or belongs: the first range that ends at or past it.
local function place_of(source, number)
  local low, high = 1, #source.ahead + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if source.ahead[middle][2] < number then low = middle + 1 else high = middle end
  end
  return low
end

local function has_come(source, number)
  if number <= source.watermark then return true end
  local range = source.ahead[place_of(source, number)]
  return range ~= nil and range[1] <= number
end

-- False where the number would open one gap too many.
local function has_room(source, number)
  if #source.ahead < MAX_RANGES or number == source.watermark + 1 then return true end
  local place = place_of(source, number)
  local before, after = source.ahead[place - 1], source.ahead[place]
  return (before and before[2] + 1 == number) or (after and after[1] - 1 == number) or false
end

-- Moves the watermark over the ranges that it has reached.
local function close_gaps(source)
  while source.ahead[1] and source.ahead[1][1] <= source.watermark + 1 do
    source.watermark = math.max(source.watermark, source.ahead[1][2])
    table.remove(source.ahead, 1)
  end
end

-- What is remembered of an event's fingerprint; never 0.
local function print_of(fingerprint)
  return math.max(1, tonumber(string.sub(fingerprint, 1, 2 * PRINT_BYTES), 16))
end

local function note_sequence(source, number, fingerprint)
  source.prints[(number - 1) % PRINTS] = print_of(fingerprint)
  -- One that was given up on and has come after all.
  if has_come(source, number) then return end
  local ahead, place = source.ahead, place_of(source, number)
  local before, after = ahead[place - 1], ahead[place]
  if number == source.watermark + 1 then
    source.watermark = number
  elseif before and before[2] + 1 == number then
    before[2] = number
    if after and after[1] == number + 1 then
      before[2], before[3] = after[2], math.min(before[3], after[3])
      table.remove(ahead, place)
    end
  elseif after and after[1] - 1 == number then
    after[1] = number
  else
    table.insert(ahead, place, {number, number, now})
  end
  close_gaps(source)
  source.highest = math.max(source.highest, number)
end

-- Gives up on all that is missing up to a number.
local function skip_to(source, number)
  source.watermark = math.max(source.watermark, number)
  source.skipped = math.max(source.skipped, number)
  while source.ahead[1] and source.ahead[1][2] <= number do table.remove(source.ahead, 1) end
  close_gaps(source)
  source.highest = math.max(source.highest, source.watermark)
end

-- Whether the event under a number that the watermark or a range covers is 'new' (the number was
-- given up on), the 'same' as the one that came, or an 'other'. Of an old number only the time can
-- be looked at: a till that counts from 1 again tells of what happened since.
local function compare_print(source, number, fingerprint, occurred_at)
  if source.highest - number >= PRINTS then
    return occurred_at <= source.occurred_at and 'same' or 'other'
  end
  local slot = (number - 1) % PRINTS
  local print = source.prints[slot]
  if not print then
    local first = slot * PRINT_BYTES
    local text = redis.call('GETRANGE', source.prints_key, first, first + PRINT_BYTES - 1)
    print = #text == PRINT_BYTES and struct.unpack('>I4', text) or 0
  end
  if print == 0 then return number <= source.skipped and 'new' or 'same' end
  return print == print_of(fingerprint) and 'same' or 'other'
end

-- Slots beside each other are written in one call: a batch mostly counts on.
local function write_prints(source)
  local slots = {}
  for slot in pairs(source.prints) do slots[#slots + 1] = slot end
  table.sort(slots)
  local first, texts = nil, {}
  for i, slot in ipairs(slots) do
    first = first or slot
    texts[#texts + 1] = struct.pack('>I4', source.prints[slot])
    if slots[i + 1] ~= slot + 1 then
      redis.call('SETRANGE', source.prints_key, integer(first * PRINT_BYTES),
        table.concat(texts))
      first, texts = nil, {}
    end
  end
end

local function write_sources()
  for i = 1, #touched_sources do
    local source = touched_sources[i]
    redis.call('HSET', source.key, 'mode', source.mode, 'heard_at', integer(source.heard_at),
      'occurred_at', integer(source.occurred_at))
    if source.beats == 1 then redis.call('HSET', source.key, 'beats', '1') end
    if source.highest > 0 then
      redis.call('HSET', source.key, 'watermark', integer(source.watermark),
        'highest', integer(source.highest), 'ahead', cmsgpack.pack(source.ahead),
        'skipped', integer(source.skipped))
      write_prints(source)
    end
    redis.call('ZADD', source.feeds_key, '0', source.name)
    redis.call('ZADD', source.feeding_key, '0', source.member)
  end
end
