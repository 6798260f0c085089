#!lua
-- probe: does every command that the verbs use work here, for this user? A verb that is denied a
-- command half-way would leave its earlier writes behind, so this is asked once, at boot.
--
-- Keys     a scratch hash, sorted set, string and stream, all of one partition
-- Returns  'ok'; a denied or unknown command is an error reply that names it

local hash, sorted_set, text, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('TIME')
redis.call('HSET', hash, 'field', cmsgpack.pack({1}))
redis.call('HGET', hash, 'field')
redis.call('HMGET', hash, 'field')
redis.call('HGETALL', hash)
redis.call('HLEN', hash)
redis.call('HEXISTS', hash, 'field')
redis.call('HDEL', hash, 'other field')
redis.call('ZADD', sorted_set, '0', 'member')
redis.call('ZCARD', sorted_set)
redis.call('ZSCORE', sorted_set, 'member')
redis.call('ZRANGEBYSCORE', sorted_set, '-inf', '0', 'LIMIT', 0, 1)
redis.call('ZREM', sorted_set, 'other member')
redis.call('SET', text, cmsgpack.pack({1}), 'PX', '1000')
redis.call('GET', text)
redis.call('STRLEN', text)
redis.call('APPEND', text, 'x')
redis.call('GETRANGE', text, 0, 1)
redis.call('SETRANGE', text, '0', 'x')
redis.call('DEL', text)
redis.call('EXISTS', text)
redis.call('XADD', stream, '*', 'field', 'value')
redis.call('XLEN', stream)
redis.call('TYPE', stream)
for _, key in ipairs({hash, sorted_set, stream}) do
  redis.call('PEXPIRE', key, '1000')
end
return 'ok'
