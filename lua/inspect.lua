#!lua flags=no-writes
-- inspect: read keys of a partition as they are at one sequence, for whoever compares them with
-- the ledger folded to just there.
--
-- KEYS     meta, then the keys to read
-- ARGV     for each of those keys how to read it, as words: 'hash', 'string', 'size' (of a sorted
--          set) or 'score <member>'
-- Returns  msgpack of {sequence, clock_ms, {value, ...}}; a hash as an array of field, value, ...,
--          a missing key, field or member as false

local meta = redis.call('HMGET', KEYS[1], 'sequence', 'clock_ms')
local values = {}
for i = 1, #ARGV do
  local how, key = ARGV[i], KEYS[i + 1]
  if how == 'hash' then
    local fields = redis.call('HGETALL', key)
    values[i] = #fields > 0 and fields or false
  elseif how == 'string' then
    values[i] = redis.call('GET', key)
  elseif how == 'size' then
    values[i] = redis.call('ZCARD', key)
  else
    values[i] = redis.call('ZSCORE', key, string.sub(how, 7))
  end
end
return cmsgpack.pack({tonumber(meta[1] or '0'), tonumber(meta[2] or '0'), values})
