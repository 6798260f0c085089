-- The frame of every verb: one call carries a group of commands of one partition.
--
-- KEYS  1 meta (hash), 2 ledger (stream), 3 holds (sorted set), then each command's own keys,
--       one command after the other.
-- ARGV  1 msgpack of {limits, commands}; a command is an array whose first element says how
--       many of KEYS are its own.
-- Returns msgpack of one reply a command, in their order: {code, ...}.
--
-- Each command stands or falls alone: it is checked and applied to copies of the rows and
-- reservations that it names (see rows.lua, reservations.lua), so that the next command of the
-- group sees its effect. The copies are written once, when every command has its verdict: a
-- script that fails does not roll back, so nothing may fail after the first write.

local META, LEDGER, HOLDS = KEYS[1], KEYS[2], KEYS[3]
local FIXED_KEYS = 3

local group = cmsgpack.unpack(ARGV[1])
local limits, commands = group[1], group[2]

local MAX_QUANTITY = 1000000000
local MAX_TOTAL = 1000000000000

-- Time is the store's, read once a script, and never behind what this partition has seen.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local meta = redis.call('HMGET', META, 'sequence', 'clock_ms', 'rebuilding')
local sequence = tonumber(meta[1]) or 0
local high_water = tonumber(meta[2]) or 0
if high_water > now then now = high_water end

-- Exact decimal text of an integer; Lua's own concatenation keeps 14 digits only.
local function integer(n)
  return string.format('%.0f', n)
end

-- NaN passes naive range checks and msgpack can carry fractions, so both are named here.
local function is_integer(n, least, most)
  return type(n) == 'number' and n == n and n >= least and n <= most and n % 1 == 0
end

local function is_text(s)
  return type(s) == 'string'
end

-- Fails where `key` is there and no sorted set. An index is written without having been read, so
-- this is asked before anything is written.
local sorted_sets = {}
local function need_sorted_set(key)
  if not sorted_sets[key] then
    redis.call('ZCARD', key)
    sorted_sets[key] = true
  end
end

-- Runs `handle(command, first)` for each command; `first` is the index of its first own key. While
-- the partition is being rebuilt nothing is taken: what came in now would be lost or doubled.
local function each_command(handle)
  local replies = {}
  if meta[3] then
    for i = 1, #commands do replies[i] = {'read_only'} end
    return replies
  end
  local first = FIXED_KEYS + 1
  for i = 1, #commands do
    local command = commands[i]
    replies[i] = handle(command, first)
    first = first + command[1]
  end
  return replies
end
