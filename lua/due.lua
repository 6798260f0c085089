#!lua flags=no-writes
-- due: which holds are past their time? Asked before `expire`, which needs their keys declared.
--
-- Keys     holds, meta
-- ARGV     how many ids at most
-- Returns  msgpack of {the store's clock in ms, the partition's high water in ms, {id, ...}}; ids
--          are due by the later of the two, the longest overdue first

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local high_water = tonumber(redis.call('HGET', KEYS[2], 'clock_ms') or '0')
local due = string.format('%.0f', math.max(now, high_water))
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', due, 'LIMIT', 0, tonumber(ARGV[1]))
return cmsgpack.pack({now, high_water, ids})
