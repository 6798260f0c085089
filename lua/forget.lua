#!lua flags=allow-oom
-- forget: remove the record of an order that ended long ago, with its places in the indexes. The
-- ledger keeps what became of it.
--
-- KEYS     meta, record, orders of the merchant, order references of the merchant, records to drive
-- ARGV     id, member of the index of order references
-- Returns  1 where it is gone, 0 where it is not time yet

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local high_water = tonumber(redis.call('HGET', KEYS[1], 'clock_ms') or '0')
if high_water > now then now = high_water end
local ended_at = tonumber(redis.call('HGET', KEYS[2], 'ended_at') or '1')
local due_at = tonumber(redis.call('ZSCORE', KEYS[5], ARGV[1]) or '0')
if ended_at == 0 or due_at > now then return 0 end
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[4])

-- After this point nothing may fail.
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[2])
redis.call('ZREM', KEYS[5], ARGV[1])
return 1
