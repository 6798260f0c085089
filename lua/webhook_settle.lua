#!lua
-- webhook_settle: take note of what became of an attempt to deliver an event.
--
-- KEYS     state (hash), outbox (stream), retries (hash), dead (stream), log (stream), lease (hash)
-- ARGV     fence, stream id in the outbox, verdict (delivered, retry or dead), ms until the next
--          attempt, attempts so far, msgpack of the attempt for the log, how many of the dead are
--          kept, how many attempts are logged, reason
-- Returns  {1, now_ms}, or {0, now_ms} where the lease has another owner by now

local STATE, OUTBOX, RETRIES, DEAD, LOG, LEASE = unpack(KEYS)
local fence, id, verdict, wait_ms, attempts = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
if redis.call('HGET', LEASE, 'fence') ~= fence or redis.call('EXISTS', STATE) == 0 then
  return {0, now}
end
local now_text = string.format('%.0f', now)
local state = redis.call('HMGET', STATE, 'failures', 'failing_since', 'dead_dropped')
local failures = tonumber(state[1] or '0') + 1
local failing_since = state[2]
if not failing_since or failing_since == '0' then failing_since = now_text end
local event = redis.call('XRANGE', OUTBOX, id, id)[1]
local dead_dropped = tonumber(state[3] or '0')
if verdict == 'dead' and redis.call('XLEN', DEAD) >= tonumber(ARGV[7]) then
  dead_dropped = dead_dropped + 1
end

-- After this point nothing may fail.
if verdict == 'delivered' then
  redis.call('HSET', STATE, 'failures', '0', 'failing_since', '0', 'delivered_at', now_text)
else
  redis.call('HSET', STATE, 'failures', string.format('%.0f', failures),
    'failing_since', failing_since, 'failed_at', now_text)
end
if verdict == 'retry' then
  redis.call('HSET', RETRIES, id, attempts .. ' ' .. string.format('%.0f', now + wait_ms))
else
  redis.call('XDEL', OUTBOX, id)
  redis.call('HDEL', RETRIES, id)
end
if verdict == 'dead' and event then
  local fields = event[2]
  fields[#fields + 1] = 'attempts'
  fields[#fields + 1] = attempts
  fields[#fields + 1] = 'reason'
  fields[#fields + 1] = ARGV[9]
  fields[#fields + 1] = 'died_at'
  fields[#fields + 1] = now_text
  redis.call('XADD', DEAD, 'MAXLEN', '=', ARGV[7], '*', unpack(fields))
  redis.call('HSET', STATE, 'dead_dropped', string.format('%.0f', dead_dropped))
end
redis.call('XADD', LOG, 'MAXLEN', '~', ARGV[8], '*', 'attempt', ARGV[6])
return {1, now}
