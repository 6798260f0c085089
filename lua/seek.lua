#!lua flags=no-writes
-- seek: find a moment, or a sequence, in a partition's ledger without reading what lies between.
--
-- KEYS     ledger
-- ARGV     field ('at' or 'seq'), value
-- Returns  {id before, id from}: the stream ids of the last entry whose field is below the value
--          and of the first one where it is not; '' where there is none
--
-- Both fields never fall from one entry to the next, so the place can be bisected: first over the
-- milliseconds of the ids, then over the counter within one.

local field, wanted = ARGV[1], tonumber(ARGV[2])

local function parts(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

local function value_of(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == field then return tonumber(fields[i + 1]) end
  end
  return 0
end

local function id_of(ms, number)
  return string.format('%.0f-%.0f', ms, number)
end

-- The smallest n of low to high such that the first entry at or past id(n) has the value; high + 1
-- where there is none.
local function bisect(low, high, id)
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local found = redis.call('XRANGE', KEYS[1], id(middle), '+', 'COUNT', 1)
    if #found == 0 or value_of(found[1]) >= wanted then
      high = middle - 1
    else
      low = middle + 1
    end
  end
  return low
end

local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 then return {'', ''} end
if value_of(first[1]) >= wanted then return {'', first[1][1]} end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if value_of(last[1]) < wanted then return {last[1][1], ''} end

local ms = bisect(parts(first[1][1]), parts(last[1][1]), function(n) return id_of(n, 0) end)
-- The millisecond before starts below the value, and may reach it within itself.
local within = redis.call('XREVRANGE', KEYS[1], '(' .. id_of(ms, 0), id_of(ms - 1, 0), 'COUNT', 1)
local from = id_of(ms, 0)
if #within > 0 then
  local _, most = parts(within[1][1])
  local number = bisect(0, most, function(n) return id_of(ms - 1, n) end)
  if number <= most then from = id_of(ms - 1, number) end
end
local at = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)
local before = redis.call('XREVRANGE', KEYS[1], '(' .. from, '-', 'COUNT', 1)
return {before[1][1], at[1][1]}
