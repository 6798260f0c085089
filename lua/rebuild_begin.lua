#!lua
-- rebuild_begin: from here on a partition takes no writes but those of one rebuild.
--
-- KEYS     meta, ledger, holds, location index
-- ARGV     rebuild id
-- Returns  {'ok'}                    marked now, or by this rebuild before
--          {'done'}                  this rebuild has finished here
--          {'taken', rebuild id}     another rebuild is under way
--          {'not_empty', last sequence, ledger entries, holds, locations}

local id = ARGV[1]
local meta = redis.call('HMGET', KEYS[1], 'rebuilding', 'rebuilt', 'sequence')
if meta[1] == id then return {'ok'} end
if meta[1] then return {'taken', meta[1]} end
if meta[2] == id then return {'done'} end
local sequence = tonumber(meta[3]) or 0
local entries = redis.call('XLEN', KEYS[2])
local holds, locations = redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4])
if sequence + entries + holds + locations > 0 then
  return {'not_empty', sequence, entries, holds, locations}
end

-- After this point nothing may fail.
redis.call('HSET', KEYS[1], 'rebuilding', id)
return {'ok'}
