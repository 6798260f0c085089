#!lua
-- lease: be the only one to do a background job in a partition, for a while.
--
-- KEYS     lease (hash: owner, fence, until)
-- ARGV     owner, ttl_ms (0 gives the lease up)
-- Returns  the fence, a number that rises with every new owner, or 0 where another owner holds it.
--          What the job writes names its fence, so an owner that lost the lease cannot write.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local lease = redis.call('HMGET', KEYS[1], 'owner', 'fence', 'until')
local fence = tonumber(lease[2] or '0')
local is_owner = lease[1] == ARGV[1]
if not is_owner and tonumber(lease[3] or '0') > now then return 0 end
-- An owner whose lease ran out may have been overtaken in its own mind: it starts a new fence too.
if not is_owner or tonumber(lease[3] or '0') <= now then fence = fence + 1 end

-- After this point nothing may fail.
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fence', string.format('%.0f', fence),
  'until', string.format('%.0f', now + tonumber(ARGV[2])))
return fence
