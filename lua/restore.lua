#!lua
-- restore: load a stretch of folded state into a store that is being rebuilt. Repeating it is
-- harmless: each key gets the same value again.
--
-- KEYS     meta (its field `rebuilding` names the rebuild), holds, location index, then the keys of
--          each item
-- ARGV     rebuild id, then msgpack of items:
--          {'row', sku, location member, on_hand, reserved, safety_stock, deficit, version}
--            keys: row, SKU index
--          {'reservation', id, {field, value, ...}, expires_at of a held one or 0,
--           created_at of an open one or 0, ms to keep an ended one or 0}
--            keys: reservation, open index
--          {'seen', text, ms to keep}
--            keys: idempotency record
--          {'meta', sequence, clock_ms}
-- Returns  'ok'; an error where the store is not being rebuilt by this rebuild

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('NOTREBUILDING the store is not being rebuilt by this rebuild')
end
local META, HOLDS, LOCATIONS = KEYS[1], KEYS[2], KEYS[3]
local items = cmsgpack.unpack(ARGV[2])
local first = 4

local function integer(n)
  return string.format('%.0f', n)
end

local RESTORES = {
  row = function(item)
    local _, sku, member, on_hand, reserved, safety_stock, deficit, version = unpack(item)
    redis.call('HSET', KEYS[first], 'on_hand', integer(on_hand), 'reserved', integer(reserved),
      'safety_stock', integer(safety_stock), 'version', integer(version))
    if deficit > 0 then redis.call('HSET', KEYS[first], 'deficit', integer(deficit)) end
    redis.call('ZADD', KEYS[first + 1], '0', sku)
    redis.call('ZADD', LOCATIONS, '0', member)
    first = first + 2
  end,
  reservation = function(item)
    local _, id, fields, expires_at, created_at, keep_ms = unpack(item)
    redis.call('HSET', KEYS[first], unpack(fields))
    if expires_at > 0 then redis.call('ZADD', HOLDS, integer(expires_at), id) end
    if created_at > 0 then redis.call('ZADD', KEYS[first + 1], integer(created_at), id) end
    if keep_ms > 0 then redis.call('PEXPIRE', KEYS[first], integer(keep_ms)) end
    first = first + 2
  end,
  seen = function(item)
    redis.call('SET', KEYS[first], item[2], 'PX', integer(item[3]))
    first = first + 1
  end,
  meta = function(item)
    redis.call('HSET', META, 'sequence', integer(item[2]), 'clock_ms', integer(item[3]))
  end,
}

-- After this point nothing may fail.
for i = 1, #items do RESTORES[items[i][1]](items[i]) end
return 'ok'
