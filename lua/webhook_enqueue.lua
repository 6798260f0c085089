#!lua
-- webhook_enqueue: put events into the outbox of a webhook endpoint, each once.
--
-- KEYS     state (hash), positions (hash), outbox (stream)
-- ARGV     partition, the last sequence that was looked through, how many events may wait,
--          then msgpack of {sequence, id, row, type, body, at_ms} for each event, in order
-- Returns  {events put in, events dropped}; {-1, 0} where the endpoint is no more
--
-- What was looked through before is left out, so the same events may be brought again. Once an
-- event does not fit, none is taken until the endpoint is resumed: what is missing is then the end
-- of what happened, and not a hole in the middle of it.

local STATE, POSITIONS, OUTBOX = KEYS[1], KEYS[2], KEYS[3]
local partition, last, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', STATE) == 0 then return {-1, 0} end
local position = tonumber(redis.call('HGET', POSITIONS, partition) or '0')
local dropped = tonumber(redis.call('HGET', STATE, 'dropped') or '0')
local dropped_from = redis.call('HGET', STATE, 'dropped_from')
local room = most - redis.call('XLEN', OUTBOX)
local taken, lost = {}, 0
for i = 4, #ARGV do
  local event = cmsgpack.unpack(ARGV[i])
  if event[1] > position then
    if dropped + lost == 0 and #taken < room then
      taken[#taken + 1] = event
    else
      lost = lost + 1
      if not dropped_from then dropped_from = string.format('%.0f', event[6]) end
    end
  end
end

-- After this point nothing may fail.
for i = 1, #taken do
  local event = taken[i]
  redis.call('XADD', OUTBOX, '*', 'id', event[2], 'row', event[3], 'type', event[4],
    'body', event[5])
end
if lost > 0 then
  redis.call('HSET', STATE, 'dropped', string.format('%.0f', dropped + lost),
    'dropped_from', dropped_from)
end
if last > position then
  redis.call('HSET', POSITIONS, partition, string.format('%.0f', last))
end
return {#taken, lost}
