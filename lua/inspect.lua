#!lua flags=no-writes
-- inspect: read keys of a partition as they are at one place of its ledger, for whoever compares
-- them with the ledger folded to just there.
--
-- KEYS     meta, ledger, then the keys to read
-- ARGV     for each of those keys how to read it, as words: 'hash', 'string', 'size' (of a sorted
--          set) or 'score <member>'
-- Returns  msgpack of {sequence, clock_ms, now_ms, id of the last ledger entry, rebuild id,
--          {value, ...}}. All but now_ms, the server's own clock, are texts as they are kept, false
--          where missing. A hash is an array of field, value, ...; a missing key or member is
--          false; a key of another type than asked for is {type}.

local TYPES = {hash = 'hash', string = 'string', size = 'zset', score = 'zset'}

local function read(how, key)
  local word = string.match(how, '^%l+')
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return false end
  if kind ~= TYPES[word] then return {kind} end
  if word == 'hash' then return redis.call('HGETALL', key) end
  if word == 'string' then return redis.call('GET', key) end
  if word == 'size' then return redis.call('ZCARD', key) end
  return redis.call('ZSCORE', key, string.sub(how, 7))
end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local meta = redis.call('HMGET', KEYS[1], 'sequence', 'clock_ms', 'rebuilding')
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local values = {}
for i = 1, #ARGV do values[i] = read(ARGV[i], KEYS[i + 2]) end
return cmsgpack.pack({meta[1], meta[2], now, last and last[1] or false, meta[3], values})
