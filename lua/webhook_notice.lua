#!lua
-- webhook_notice: tell an endpoint that events are missing, at the end of its outbox; whatever
-- was dropped is then told of, and new events are taken again.
--
-- KEYS     state (hash), outbox (stream)
-- ARGV     id, row, type, body, how many dropped events the body tells of (0: of no dropped ones)
-- Returns  1; 0 where the endpoint is no more, or more was dropped meanwhile

local STATE, OUTBOX = KEYS[1], KEYS[2]
if redis.call('EXISTS', STATE) == 0 then return 0 end
local told = tonumber(ARGV[5])
local dropped = tonumber(redis.call('HGET', STATE, 'dropped') or '0')
if told > 0 and dropped ~= told then return 0 end

-- After this point nothing may fail.
redis.call('XADD', OUTBOX, '*', 'id', ARGV[1], 'row', ARGV[2], 'type', ARGV[3], 'body', ARGV[4])
if told > 0 then redis.call('HDEL', STATE, 'dropped', 'dropped_from') end
return 1
