#!lua
-- webhook_record: write, replace or remove the record of a webhook endpoint, if it is as expected.
--
-- KEYS     webhooks (hash of records by id, and `revision`)
-- ARGV     id, the record as it should be now ('' for none), the record as it shall be ('' removes
--          it), how many endpoints there may be
-- Returns  1 where it is done (a call that was done before too), 0 where the record is another by
--          now, -1 where there are too many

local id, expected, wanted, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local found = redis.call('HGET', KEYS[1], id) or ''
if found == wanted then return 1 end
if found ~= expected then return 0 end
-- One of the fields is the revision.
if found == '' and redis.call('HLEN', KEYS[1]) > most then return -1 end
local revision = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0') + 1

-- After this point nothing may fail.
if wanted == '' then
  redis.call('HDEL', KEYS[1], id)
  redis.call('HSET', KEYS[1], 'revision', string.format('%.0f', revision))
else
  redis.call('HSET', KEYS[1], id, wanted, 'revision', string.format('%.0f', revision))
end
return 1
