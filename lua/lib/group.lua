-- The frame of every verb: one call carries a group of commands of one partition.
--
-- KEYS  1 meta (hash), 2 ledger (stream), 3 holds (sorted set), then each command's own keys,
--       one command after the other.
-- ARGV  1 msgpack of the limits, 2 msgpack of how many of KEYS are each command's own, then a
--       command each: msgpack of its elements, one after the other and no array around them.
-- Returns msgpack of one reply a command, in their order: {code, ...}.
--
-- Each command stands or falls alone: it is checked and applied to copies of the rows and
-- reservations that it names (see rows.lua, reservations.lua), so that the next command of the
-- group sees its effect. The copies are written once, when every command has its verdict: a
-- script that fails does not roll back, so nothing may fail after the first write.
--
-- What is written on the hot path is put together of pieces of msgpack: those that the caller
-- knows come ready-made and are passed on unread, since making and reading tables is what a
-- script spends most of its time on (docs/decisions/0008 has the figures).

-- @include encoding

local META, LEDGER, HOLDS = KEYS[1], KEYS[2], KEYS[3]
local FIXED_KEYS = 3
local FIXED_ARGUMENTS = 2

local limits = cmsgpack.unpack(ARGV[1])
local own_keys = cmsgpack.unpack(ARGV[2])

local MAX_QUANTITY = 1000000000
local MAX_TOTAL = 1000000000000
local MAX_EXACT = 9007199254740991

-- Time is the store's, read once a script, and never behind what this partition has seen.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local meta = redis.call('HMGET', META, 'sequence', 'clock_ms', 'rebuilding')
local sequence = tonumber(meta[1]) or 0
local high_water = tonumber(meta[2]) or 0
if high_water > now then now = high_water end

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

-- Collects the members that an index gets, each as its score and then its name, or loses, so that
-- each index is written in one call.
local function collector()
  local by_key = {}
  return by_key, function(key, member, follower)
    local members = by_key[key]
    if not members then
      members = {}
      by_key[key] = members
    end
    members[#members + 1] = member
    if follower then members[#members + 1] = follower end
  end
end

-- Writes sorted sets by their keys: members with the score to be had, false for one that leaves.
local function write_members(scores_of)
  for key, score_of in pairs(scores_of) do
    local joining, leaving = {}, {}
    for member, score in pairs(score_of) do
      if score then
        joining[#joining + 1] = score
        joining[#joining + 1] = member
      else
        leaving[#leaving + 1] = member
      end
    end
    if #joining > 0 then redis.call('ZADD', key, unpack(joining)) end
    if #leaving > 0 then redis.call('ZREM', key, unpack(leaving)) end
  end
end

-- Writes what counts, for as long as any of it does: until a moment in ms, 0 where that is unknown.
local function write_counting(key, entries, latest)
  if not next(entries) then
    redis.call('DEL', key)
  elseif latest == 0 then
    redis.call('SET', key, cmsgpack.pack(entries))
  else
    redis.call('SET', key, cmsgpack.pack(entries), 'PX', integer(latest - now))
  end
end

-- Where each command's own keys begin in KEYS.
local first_keys = {}
do
  local first = FIXED_KEYS + 1
  for i = 1, #own_keys do
    first_keys[i] = first
    first = first + own_keys[i]
  end
end

-- True where not one of the commands' first keys is there: one question for the whole group.
local function first_keys_are_new()
  local names = {}
  for i = 1, #first_keys do names[i] = KEYS[first_keys[i]] end
  return redis.call('EXISTS', unpack(names)) == 0
end

-- Runs `handle(first, last, ...)` for each command: its own keys are KEYS first to last, what
-- follows are its elements. It returns a reply, as an array or as the msgpack of one. While the
-- partition is being rebuilt nothing is taken: what came in now would be lost or doubled.
local function each_command(handle)
  local replies = {array_of(#own_keys)}
  for i = 1, #own_keys do
    local reply = {'read_only'}
    if not meta[3] then
      local first = first_keys[i]
      reply = handle(first, first + own_keys[i] - 1, cmsgpack.unpack(ARGV[FIXED_ARGUMENTS + i]))
    end
    if type(reply) == 'table' then reply = cmsgpack.pack(reply) end
    replies[i + 1] = reply
  end
  return replies
end
