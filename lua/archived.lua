#!lua flags=allow-oom
-- archived: the ledger up to here is in the archive and was read back; trim what nobody needs.
--
-- KEYS     ledger, archive position (hash), readers (hash by name, see advance.lua), lease (hash)
-- ARGV     fence, sequence, stream id, seal, at_ms of the last archived entry,
--          resume window in ms, how many entries may go at most, for how many ms an entry may be
--          kept for a reader
-- Returns  {1, entries trimmed}, or {0, 0} where the lease has another owner by now
--
-- Only what is archived, past the resume window and not needed by any registered reader goes:
-- never beyond the position that this call records.

local fence, sequence, stream_id, seal, at_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local window_ms, most = tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('HGET', KEYS[4], 'fence') ~= fence then return {0, 0} end

-- Stream ids compare as two numbers.
local function parts(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

local function earlier(a, b)
  local a_ms, a_number = parts(a)
  local b_ms, b_number = parts(b)
  if a_ms ~= b_ms then return a_ms < b_ms end
  return a_number < b_number
end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local keep_from = string.format('%.0f-0', math.max(0, now - window_ms))
if earlier(stream_id, keep_from) then keep_from = stream_id end
local readers = redis.call('HGETALL', KEYS[3])
local window_from = keep_from
for i = 2, #readers, 2 do
  local reader_at = string.match(readers[i], '^(%d+%-%d+)')
  if reader_at and earlier(reader_at, keep_from) then keep_from = reader_at end
end
-- A reader that was given up, or is that late, no longer holds the ledger: it finds a gap.
local held_from = string.format('%.0f-0', math.max(0, now - tonumber(ARGV[8])))
if earlier(keep_from, held_from) then
  keep_from = held_from
  if earlier(window_from, keep_from) then keep_from = window_from end
end
-- What went once is gone, whatever window is asked for now.
local trimmed_before = redis.call('HGET', KEYS[2], 'trimmed_before') or keep_from
if earlier(trimmed_before, keep_from) then trimmed_before = keep_from end

-- After this point nothing may fail.
redis.call('HSET', KEYS[2], 'sequence', sequence, 'stream_id', stream_id, 'seal', seal,
  'at', at_ms, 'fence', fence, 'trimmed_before', trimmed_before)
-- An approximate trim takes whole nodes of the stream only, and may be bounded; it leaves some
-- entries longer than it had to, and never takes one too many.
return {1, redis.call('XTRIM', KEYS[1], 'MINID', '~', keep_from, 'LIMIT', most)}
