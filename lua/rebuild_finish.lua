#!lua
-- rebuild_finish: a partition is restored; its ledger goes on, and so does its trade.
--
-- KEYS     meta, ledger
-- ARGV     rebuild id, last sequence and clock (ms) of what was restored, actor,
--          msgpack of the detail
-- Returns  'ok', also where this rebuild had finished here before; an error where the partition is
--          not being rebuilt by this rebuild
-- Ledger   rebuild, of no merchant and no location, detail {source, until, partitions of the source}

local META, LEDGER = KEYS[1], KEYS[2]
local id, actor = ARGV[1], ARGV[4]
local meta = redis.call('HMGET', META, 'rebuilding', 'rebuilt')
if meta[2] == id then return 'ok' end
if meta[1] ~= id then
  return redis.error_reply('NOTREBUILDING the store is not being rebuilt by this rebuild')
end
local sequence = tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
now = math.max(now, tonumber(ARGV[3]))

-- @include encoding
-- @include ledger
record('rebuild', id, '', '', actor, '', {}, cmsgpack.unpack(ARGV[5]))

-- After this point nothing may fail.
write_ledger()
redis.call('HSET', META, 'rebuilt', id)
redis.call('HDEL', META, 'rebuilding')
return 'ok'
