#!lua
-- restore: load a stretch of folded state into a store that is being rebuilt. Repeating it is
-- harmless: each key gets the same value again.
--
-- KEYS     meta (its field `rebuilding` names the rebuild), holds, location index, then the keys of
--          each item
-- ARGV     rebuild id, then msgpack of items:
--          {'rows', location member, {{sku, on_hand, reserved, safety_stock, deficit, version}, ...}}
--            keys: SKU index of the location, then the row of each
--          {'reservation', id, state, expires_at, confirmed_at, ended_at, order_ref, picked, body,
--           keep until}
--            keys: reservation, open index of its location. Times are ms, 0 where they do not apply.
--          {'seen', fingerprint, reply, keep until}
--            keys: idempotency record
--          What is to be kept until a moment that has passed is left out.
-- Returns  'ok'; an error where the store is not being rebuilt by this rebuild

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('NOTREBUILDING the store is not being rebuilt by this rebuild')
end
local HOLDS, LOCATIONS = KEYS[2], KEYS[3]
local items = cmsgpack.unpack(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local first = 4

local function integer(n)
  return string.format('%.0f', n)
end

local function restore_rows(item)
  local member, rows = item[2], item[3]
  local listed = {}
  for i = 1, #rows do
    local sku, on_hand, reserved, safety_stock, deficit, version = unpack(rows[i], 1, 6)
    local key = KEYS[first + i]
    redis.call('HSET', key, 'on_hand', integer(on_hand), 'reserved', integer(reserved),
      'safety_stock', integer(safety_stock), 'version', integer(version))
    -- As in lib/rows.lua, a row without a deficit does not pay for the column.
    if deficit > 0 then redis.call('HSET', key, 'deficit', integer(deficit)) end
    listed[2 * i - 1] = '0'
    listed[2 * i] = sku
  end
  redis.call('ZADD', KEYS[first], unpack(listed))
  redis.call('ZADD', LOCATIONS, '0', member)
  first = first + 1 + #rows
end

local function restore_reservation(item)
  local _, id, state, expires_at, confirmed_at, ended_at, order_ref, picked, body, keep_until =
    unpack(item, 1, 10)
  local key, open_key = KEYS[first], KEYS[first + 1]
  first = first + 2
  if keep_until > 0 and keep_until <= now then return end
  redis.call('HSET', key, 'state', state, 'expires_at', integer(expires_at),
    'body', cmsgpack.pack(body))
  if confirmed_at > 0 then
    redis.call('HSET', key, 'confirmed_at', integer(confirmed_at), 'order_ref', order_ref)
  end
  if keep_until > 0 then
    local units = ''
    if state == 'committed' then units = cmsgpack.pack(picked) end
    redis.call('HSET', key, 'ended_at', integer(ended_at), 'picked', units)
    redis.call('PEXPIRE', key, integer(keep_until - now))
    return
  end
  if state == 'held' then redis.call('ZADD', HOLDS, integer(expires_at), id) end
  redis.call('ZADD', open_key, integer(body[3]), id)
end

local function restore_seen(item)
  local _, fingerprint, reply, keep_until = unpack(item, 1, 4)
  local key = KEYS[first]
  first = first + 1
  if keep_until <= now then return end
  redis.call('SET', key, cmsgpack.pack({fingerprint, reply}), 'PX', integer(keep_until - now))
end

local RESTORES = {rows = restore_rows, reservation = restore_reservation, seen = restore_seen}

-- After this point nothing may fail.
for i = 1, #items do RESTORES[items[i][1]](items[i]) end
return 'ok'
