#!lua
-- restore: load a stretch of folded state into a store that is being rebuilt. Repeating it is
-- harmless: each key gets the same value again.
--
-- KEYS     meta (its field `rebuilding` names the rebuild), holds, location index, then the keys of
--          each item
-- ARGV     rebuild id, then msgpack of items:
--          {'rows', location member, {{sku, on_hand, reserved, safety_stock, version, deficit,
--            low_stock_threshold, counted, offline_buffer, backordered, terms, split}, ...}}
--            keys: SKU index of the location, then the row of each
--          {'recent', {{at, units}, ...}, keep until}
--            keys: recent changes of a row
--          {'source', name, location member, {field, text, ...}, prints}
--            keys: source, its prints, sources of the location, locations with sources
--          {'quarantine', {id, body, ...}}
--            keys: quarantine of the location, shortfalls of the partition, what is held back, or
--            a merchant's definitions
--          {'splits', {member, ...}}
--            keys: index of split rows
--          {'reservation', id, state, expires_at, confirmed_at, ended_at, order_ref, picked, body,
--           created_at, keep until, waiting, {place, ...}}
--            keys: reservation, open index of its location, the queue of each place. Times are ms, 0
--            where they do not apply.
--          {'order', id, ref, created_at, due_at, {field, text, ...}}
--            keys: record, orders and order references of the merchant, records to drive
--          {'seen', record, keep until}
--            keys: idempotency record
--          {'buyer', count, keep until}
--            keys: what counts for a buyer of a row
--          {'claims', claims, keep until, {member, due_at, ...}}
--            keys: claims of a buyer, index of claims to look at
--          Units, versions, picked, body and record come as the texts that are kept. What is to be
--          kept until a moment that has passed is left out.
-- Returns  'ok'; an error where the store is not being rebuilt by this rebuild

if redis.call('HGET', KEYS[1], 'rebuilding') ~= ARGV[1] then
  return redis.error_reply('NOTREBUILDING the store is not being rebuilt by this rebuild')
end
local HOLDS, LOCATIONS = KEYS[2], KEYS[3]
local items = cmsgpack.unpack(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local first = 4

-- @include encoding

local function restore_rows(item)
  local member, rows = item[2], item[3]
  local listed = {}
  for i = 1, #rows do
    local row, key = rows[i], KEYS[first + i]
    redis.call('HSET', key, 'on_hand', row[2], 'reserved', row[3], 'safety_stock', row[4],
      'version', row[5])
    -- As in lib/rows.lua, a row without a deficit or a threshold does not pay for the column.
    if row[6] ~= '0' then redis.call('HSET', key, 'deficit', row[6]) end
    if row[7] ~= '0' then redis.call('HSET', key, 'low_stock_threshold', row[7]) end
    if row[8] ~= '' then redis.call('HSET', key, 'counted', row[8]) end
    if row[9] ~= '0' then redis.call('HSET', key, 'offline_buffer', row[9]) end
    if row[10] ~= '0' then redis.call('HSET', key, 'backordered', row[10]) end
    if row[11] ~= '' then redis.call('HSET', key, 'terms', row[11]) end
    if row[12] ~= '' then redis.call('HSET', key, 'split', row[12]) end
    listed[2 * i - 1] = '0'
    listed[2 * i] = row[1]
  end
  redis.call('ZADD', KEYS[first], unpack(listed))
  redis.call('ZADD', LOCATIONS, '0', member)
  first = first + 1 + #rows
end

local function restore_reservation(item)
  local _, id, state, expires_at, confirmed_at, ended_at, order_ref, picked, body, created_at,
    keep_until, waiting, places = unpack(item, 1, 13)
  local key, open_key, queues = KEYS[first], KEYS[first + 1], first + 1
  first = first + 2 + #places
  if keep_until > 0 and keep_until <= now then return end
  redis.call('HSET', key, 'state', state, 'expires_at', integer(expires_at),
    'body', body)
  if confirmed_at > 0 then redis.call('HSET', key, 'confirmed_at', integer(confirmed_at)) end
  if confirmed_at > 0 or order_ref ~= '' then redis.call('HSET', key, 'order_ref', order_ref) end
  if keep_until > 0 then
    redis.call('HSET', key, 'ended_at', integer(ended_at), 'picked', picked)
    redis.call('PEXPIRE', key, integer(keep_until - now))
    return
  end
  if state == 'held' then redis.call('ZADD', HOLDS, integer(expires_at), id) end
  redis.call('ZADD', open_key, integer(created_at), id)
  if waiting ~= '' then redis.call('HSET', key, 'waiting', waiting) end
  for i, place in ipairs(places) do redis.call('ZADD', KEYS[queues + i], integer(place), id) end
end

local function restore_seen(item)
  local record, keep_until = item[2], item[3]
  local key = KEYS[first]
  first = first + 1
  if keep_until <= now then return end
  redis.call('SET', key, record, 'PX', integer(keep_until - now))
end

local function restore_buyer(item)
  local count, keep_until = item[2], item[3]
  local key = KEYS[first]
  first = first + 1
  if keep_until == 0 then
    redis.call('SET', key, count)
  elseif keep_until > now then
    redis.call('SET', key, count, 'PX', integer(keep_until - now))
  end
end

local function restore_claims(item)
  local due, index = item[4], KEYS[first + 1]
  restore_buyer(item)
  for i = 1, #due, 2 do redis.call('ZADD', index, integer(due[i + 1]), due[i]) end
  first = first + 1
end

local function restore_recent(item)
  local deltas, keep_until, texts = item[2], item[3], {}
  local key = KEYS[first]
  first = first + 1
  if keep_until <= now then return end
  for i, delta in ipairs(deltas) do texts[i] = struct.pack('>I6i6', delta[1], delta[2]) end
  redis.call('SET', key, table.concat(texts), 'PX', integer(keep_until - now))
end

local function restore_source(item)
  local _, name, member, fields, prints = unpack(item, 1, 5)
  redis.call('HSET', KEYS[first], unpack(fields))
  if #prints > 0 then redis.call('SET', KEYS[first + 1], prints) end
  redis.call('ZADD', KEYS[first + 2], '0', name)
  redis.call('ZADD', KEYS[first + 3], '0', member)
  first = first + 4
end

local function restore_quarantine(item)
  redis.call('HSET', KEYS[first], unpack(item[2]))
  first = first + 1
end

local function restore_splits(item)
  for _, member in ipairs(item[2]) do redis.call('ZADD', KEYS[first], '0', member) end
  first = first + 1
end

local function restore_order(item)
  local _, id, ref, created_at, due_at, fields = unpack(item, 1, 6)
  redis.call('HSET', KEYS[first], unpack(fields))
  if ref ~= '' then
    redis.call('ZADD', KEYS[first + 1], integer(created_at), id)
    redis.call('ZADD', KEYS[first + 2], '0', ref)
  end
  redis.call('ZADD', KEYS[first + 3], integer(due_at), id)
  first = first + 4
end

local RESTORES = {rows = restore_rows, order = restore_order, reservation = restore_reservation,
  seen = restore_seen, recent = restore_recent, source = restore_source,
  quarantine = restore_quarantine, splits = restore_splits,
  buyer = restore_buyer, claims = restore_claims}

-- After this point nothing may fail.
for i = 1, #items do RESTORES[items[i][1]](items[i]) end
return 'ok'
