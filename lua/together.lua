#!lua flags=no-writes
-- together: read some hashes of a partition as they are at one moment.
--
-- KEYS     the hashes
-- ARGV     the fields to read of each
-- Returns  {{value, ...}, ...}: the values in the order of the fields, of each hash in the order of
--          the keys

local found = {}
for i = 1, #KEYS do found[i] = redis.call('HMGET', KEYS[i], unpack(ARGV)) end
return found
