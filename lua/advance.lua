#!lua
-- advance: a registered reader of a partition's ledger has dealt with everything up to here.
--
-- KEYS     readers (hash by name of '<stream id> <sequence> <fence> <at>')
-- ARGV     name, stream id, sequence, fence, how many readers there may be
-- Returns  1; 0 where a reader of that name with a higher fence has taken over; -1 where there are
--          too many readers

local name, stream_id, sequence, fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local found = redis.call('HGET', KEYS[1], name)
if found then
  local earlier_fence = string.match(found, '^%S+ %S+ (%d+)')
  if earlier_fence and tonumber(earlier_fence) > tonumber(fence) then return 0 end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
  return -1
end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

-- After this point nothing may fail.
redis.call('HSET', KEYS[1], name,
  stream_id .. ' ' .. sequence .. ' ' .. fence .. ' ' .. string.format('%.0f', now))
return 1
