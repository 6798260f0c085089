#!lua
-- webhook_replay: put given-up events of a webhook endpoint at the end of its outbox again.
--
-- KEYS     dead (stream), outbox (stream), state (hash)
-- ARGV     how many events may wait in the outbox, then the stream ids among the dead
-- Returns  how many were put back; -1 where they do not fit

local DEAD, OUTBOX, STATE = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', STATE) == 0 then return 0 end
local found = {}
for i = 2, #ARGV do
  local event = redis.call('XRANGE', DEAD, ARGV[i], ARGV[i])[1]
  if event then found[#found + 1] = event end
end
if redis.call('XLEN', OUTBOX) + #found > tonumber(ARGV[1]) then return -1 end
local KEPT = {id = true, row = true, type = true, body = true}

-- After this point nothing may fail.
for i = 1, #found do
  local id, fields = found[i][1], found[i][2]
  local kept = {}
  for j = 1, #fields, 2 do
    if KEPT[fields[j]] then
      kept[#kept + 1] = fields[j]
      kept[#kept + 1] = fields[j + 1]
    end
  end
  redis.call('XADD', OUTBOX, '*', unpack(kept))
  redis.call('XDEL', DEAD, id)
end
return #found
