#!lua
-- repair: put right what the audit found, through the ledger. Nothing is ever edited silently.
--
-- Command {id, merchant, location, actor, what, reason, finding, ...what's own arguments}
--   'row'          sku, location member, token, version, levels, deltas, found, past, terms, split
--                  Keys: row, SKU index, location index, recent changes. The row gets these levels
--                  and version; deltas are its change by the ledger; found is kept in the ledger.
--                  past is {counted at, counted by, {{at, units}, ...}} as the ledger says; terms
--                  are false where it has none; split is its column of that name, '' to leave that
--                  as it is, which a row that is split and gets supplies is refused.
--   'reservation'  reservation id, token, hold, ms to keep an ended one
--                  Keys: reservation, open index. The hash gets what hold says, the indexes follow;
--                  hold is {state, expires_at, confirmed_at, ended_at, order_ref, picked, body,
--                  waiting}.
--   'index'        reservation id, own
--                  Keys: reservation, then the open indexes that may name it; where own is 1 the
--                  first is that of its location. The hold index and they say what the hash says.
--   'queue'        reservation id, sku, token, place (false for none)
--                  Keys: reservation, queue of the row. The token is of the reservation.
--   'count'        sku, buyer, token, {{reservation id, units, until}, ...}
--                  Keys: what counts for the buyer. What is over by now is left out.
--   'claims'       buyer, token, {name = claim}, {{member, due at}, ...}
--                  Keys: claims of the buyer, index of claims to look at. What is over by now is left
--                  out.
--   'listing'      sku ('' for the location alone), location member
--                  Keys: row, SKU index, location index. The two list the row if it is there.
--   'seen'         operation, token, fingerprint, reply without its code, ms to keep it
--                  Keys: idempotency record
--   'source'       source, token, state {mode, heard_at, occurred_at, watermark, highest, ahead},
--                  prints
--                  Keys: source, its prints, sources of the location, locations with sources
--   'set_aside'    event, token, body ('' for none)
--                  Keys: quarantine of the location
--   'remove'       name, token, reservation id or ''
--                  Keys: the key that goes, then the open indexes that may name the reservation
--   'gap'          first, last. These sequences are lost, and that is known.
--   'known'        first, last. What the audit found about them stays as it is, and is known.
--   'sequence'     least. The partition goes on counting from there, if it is behind.
--   token          of the key as it was found, see token_of(); it must be so still
-- Returns  {'ok', sequence}
--          {'replayed', version}          it is as it should be already: this call came before
--          {'version_conflict', version}  the key changed since the audit
--          {'invalid', field}
-- Ledger   repair, detail {what, reason, finding, ...}; see docs/reference/ledger.md
-- @include group
-- @include rows
-- @include ledger
-- @include listing
-- @include asof
-- @include claims

local LEVELS = {'on_hand', 'reserved', 'safety_stock', 'deficit', 'low_stock_threshold'}
local ROW_FIELDS = {'on_hand', 'reserved', 'safety_stock', 'deficit', 'version',
  'low_stock_threshold', 'backordered', 'terms'}
local RESERVATION_FIELDS = {'state', 'expires_at', 'body', 'confirmed_at', 'ended_at', 'order_ref',
  'picked', 'waiting'}
local OFFLINE_BUFFER, BACKORDERED = 6, 7
-- Where a reservation's body has it, as in lib/reservations.lua.
local BODY_CREATED_AT = 9
local SOURCE_FIELDS = {'mode', 'watermark', 'highest', 'ahead'}
local MAX_VERSION = 9007199254740992

local writes, changed = {}, {}

-- What a key looks like, in a form that fits into a command; `reconciler.inspection` computes the
-- same. `fields` of a hash, or nil for a string.
local function token_of(key, fields)
  local kind = redis.call('TYPE', key)['ok']
  if kind == 'none' then return 'missing' end
  if kind ~= (fields and 'hash' or 'string') then return 'type:' .. kind end
  local values
  if fields then
    values = redis.call('HMGET', key, unpack(fields))
  else
    values = {redis.call('GET', key)}
  end
  for i = 1, #values do values[i] = values[i] and ('=' .. values[i]) or '-' end
  return redis.sha1hex(table.concat(values, '\0'))
end

-- A second command of the group on the same key would not see the first one's effect.
local function changed_since(key, token, fields)
  return changed[key] or token_of(key, fields) ~= token
end

-- False where one of KEYS first to last, or the hold index, holds something that no index is.
local function are_indexes(first, last)
  for i = first, last + 1 do
    local kind = redis.call('TYPE', i > last and HOLDS or KEYS[i])['ok']
    if kind ~= 'zset' and kind ~= 'none' then return false end
  end
  return true
end

local function write(...)
  writes[#writes + 1] = {...}
end

-- True where two values are alike, tables with all that is in them.
local function are_alike(one, other)
  if type(one) ~= 'table' or type(other) ~= 'table' then return one == other end
  for name, value in pairs(one) do
    if not are_alike(value, other[name]) then return false end
  end
  for name in pairs(other) do
    if one[name] == nil then return false end
  end
  return true
end

local function is_right_already(key, version, levels, terms)
  if redis.call('TYPE', key)['ok'] ~= 'hash' then return false end
  local row = row_at(key)
  if row.version ~= version or row.backordered ~= (levels[BACKORDERED] or 0) then return false end
  for i = 1, #LEVELS do
    if row[LEVELS[i]] ~= levels[i] then return false end
  end
  return are_alike(row.terms or {}, terms or {})
end

-- Has the row's past written anew: what the ledger says, and now what the repair changes.
local function past_writes(key, recent_key, told, units)
  local past = {counted_at = told[1], deltas = told[3]}
  if units ~= 0 then past.deltas[#past.deltas + 1] = {undated(past), units} end
  if told[1] > 0 then write('HSET', key, 'counted', integer(told[1]) .. '-' .. told[2]) end
  write('DEL', recent_key)
  local texts = {}
  for i, delta in ipairs(past.deltas) do
    texts[i] = struct.pack(DELTA_FORM, delta[1], delta[2])
  end
  if #texts > 0 then
    write('SET', recent_key, table.concat(texts), 'PX', integer(limits.recent_ms))
  end
end

-- Levels, or deltas, without what few rows have and this one does not.
local function without_zeros(levels)
  for i = #levels, 5, -1 do
    if levels[i] ~= 0 then break end
    levels[i] = nil
  end
  return levels
end

local function repair_row(command, first)
  local id, merchant, location, actor, what, reason, finding, sku, member, token, version,
    levels, deltas, found, past, terms, split = unpack(command, 1, 17)
  local key = KEYS[first]
  for i = 1, #LEVELS do
    if not is_integer(levels[i], 0, MAX_TOTAL) then return {'invalid', LEVELS[i]} end
    if not is_integer(deltas[i], -MAX_TOTAL, MAX_TOTAL) then return {'invalid', 'deltas'} end
  end
  local backordered = levels[BACKORDERED] or 0
  if not is_integer(backordered, 0, MAX_TOTAL) then return {'invalid', 'backordered'} end
  if not is_integer(version, 1, MAX_VERSION) then return {'invalid', 'version'} end
  if not are_indexes(first + 1, first + 2) then return {'invalid', 'index'} end
  if changed_since(key, token, ROW_FIELDS) then
    if is_right_already(key, version, levels, terms) then return {'replayed', version} end
    return {'version_conflict', 0}
  end
  local is_hash = redis.call('TYPE', key)['ok'] == 'hash'
  if split == '' and is_hash then
    split = redis.call('HGET', key, 'split') or ''
    -- It may have been split since it was looked at, which its token does not say.
    local places = string.match(split, '^home %d+ [01] (%S+)')
    if terms and terms.supplies and (places or '-') ~= '-' then return {'invalid', 'split'} end
  end
  changed[key] = true
  -- Whatever the key held goes first, as it may be of another type.
  local buffer = is_hash and redis.call('HGET', key, 'offline_buffer')
  write('DEL', key)
  if buffer then write('HSET', key, 'offline_buffer', buffer) end
  if split ~= '' then write('HSET', key, 'split', split) end
  past_writes(key, KEYS[first + 3], past, deltas[1] - deltas[4])
  touched_rows[#touched_rows + 1] = {
    key = key, exists = true, on_hand = levels[1], reserved = levels[2], safety_stock = levels[3],
    deficit = levels[4], version = version, touched = true, shelf_touched = true,
    has_deficit = false, low_stock_threshold = levels[5], sets_threshold = levels[5] > 0,
    offline_buffer = tonumber(buffer or '0'),
    backordered = backordered, changes_backordered = true, terms = terms or nil,
    changes_terms = true,
  }
  list_row({exists = false}, sku, KEYS[first + 1], member, KEYS[first + 2])
  -- As change_row() writes them: what a row does not have it does not pay for.
  levels[OFFLINE_BUFFER] = tonumber(buffer or '0')
  levels, deltas = without_zeros(levels), without_zeros(deltas)
  local line = cmsgpack.pack({sku, version, levels, deltas, terms or nil})
  if string.find(split, '^part') then
    line = array_of(6) .. cmsgpack.pack(sku, version, levels, deltas, nil, true)
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {line},
    {what, reason, finding, found})}
end

-- Makes the hold index and the open indexes KEYS first to last say what a reservation's state is.
-- Those past `own` are of other locations and must not name it.
local function index_writes(id, state, expires_at, created_at, first, own, last)
  if state == 'held' then
    write('ZADD', HOLDS, integer(expires_at), id)
  else
    write('ZREM', HOLDS, id)
  end
  for i = first, last do
    if i <= own and (state == 'held' or state == 'confirmed') then
      write('ZADD', KEYS[i], integer(created_at), id)
    else
      write('ZREM', KEYS[i], id)
    end
  end
end

local function hash_writes(key, hold, keep_ms)
  local state, expires_at, confirmed_at, ended_at, order_ref, picked, body, waiting =
    unpack(hold, 1, 8)
  write('DEL', key)
  write('HSET', key, 'state', state, 'expires_at', integer(expires_at),
    'body', cmsgpack.pack(body))
  if confirmed_at > 0 then write('HSET', key, 'confirmed_at', integer(confirmed_at)) end
  if confirmed_at > 0 or order_ref ~= '' then write('HSET', key, 'order_ref', order_ref) end
  if waiting then write('HSET', key, 'waiting', cmsgpack.pack(waiting)) end
  if ended_at > 0 then
    write('HSET', key, 'ended_at', integer(ended_at),
      'picked', state == 'committed' and cmsgpack.pack(picked) or '')
    write('PEXPIRE', key, integer(keep_ms))
  end
end

local function repair_reservation(command, first, last)
  local id, merchant, location, actor, what, reason, finding, reservation, token, hold,
    keep_ms = unpack(command, 1, 11)
  local key = KEYS[first]
  if not are_indexes(first + 1, last) then return {'invalid', 'index'} end
  if type(hold) ~= 'table' or #hold < 7 then return {'invalid', 'hold'} end
  -- An empty map would be packed as an array.
  if hold[8] and not next(hold[8]) then hold[8] = nil end
  for i = 2, 4 do
    if not is_integer(hold[i], 0, MAX_VERSION) then return {'invalid', 'hold'} end
  end
  if not is_integer(keep_ms, 1, MAX_TOTAL) then return {'invalid', 'keep_ms'} end
  if changed_since(key, token, RESERVATION_FIELDS) then return {'version_conflict', 0} end
  changed[key] = true
  hash_writes(key, hold, keep_ms)
  index_writes(reservation, hold[1], hold[2], hold[7][BODY_CREATED_AT], first + 1, first + 1, last)
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, reservation, hold})}
end

local function repair_index(command, first, last)
  local id, merchant, location, actor, what, reason, finding, reservation, own =
    unpack(command, 1, 9)
  local state, expires_at, created_at
  if not are_indexes(first + 1, last) then return {'invalid', 'index'} end
  if redis.call('TYPE', KEYS[first])['ok'] == 'hash' then
    local fields = redis.call('HMGET', KEYS[first], 'state', 'expires_at', 'body')
    state, expires_at = fields[1], tonumber(fields[2] or '')
    created_at = fields[3] and cmsgpack.unpack(fields[3])[BODY_CREATED_AT]
    if not is_integer(expires_at, 0, MAX_VERSION) or not is_integer(created_at, 0, MAX_VERSION) then
      return {'invalid', 'reservation'}
    end
  end
  index_writes(reservation, state, expires_at, created_at, first + 1, first + own, last)
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, reservation})}
end

local function repair_queue(command, first)
  local id, merchant, location, actor, what, reason, finding, reservation, sku, token, place =
    unpack(command, 1, 11)
  local kind = redis.call('TYPE', KEYS[first + 1])['ok']
  if kind ~= 'zset' and kind ~= 'none' then return {'invalid', 'queue'} end
  if place and not is_integer(place, 0, MAX_VERSION) then return {'invalid', 'place'} end
  if changed_since(KEYS[first], token, RESERVATION_FIELDS) then return {'version_conflict', 0} end
  if place then
    write('ZADD', KEYS[first + 1], integer(place), reservation)
  else
    write('ZREM', KEYS[first + 1], reservation)
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, reservation, sku})}
end

local function repair_count(command, first)
  local id, merchant, location, actor, what, reason, finding, sku, buyer, token, entries =
    unpack(command, 1, 11)
  local key, counted, latest, lasts = KEYS[first], {}, 0, false
  for _, entry in ipairs(entries) do
    local units, until_ms = entry[2], entry[3]
    if not is_integer(units, 1, MAX_TOTAL) or not is_integer(until_ms, 0, MAX_VERSION) then
      return {'invalid', 'entries'}
    end
    if until_ms == 0 or until_ms > now then
      counted[entry[1]] = {units, until_ms}
      lasts, latest = lasts or until_ms == 0, math.max(latest, until_ms)
    end
  end
  if changed_since(key, token) then return {'version_conflict', 0} end
  changed[key] = true
  if not next(counted) then
    write('DEL', key)
  elseif lasts then
    write('SET', key, cmsgpack.pack(counted))
  else
    write('SET', key, cmsgpack.pack(counted), 'PX', integer(latest - now))
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, sku, buyer})}
end

local function repair_claims(command, first)
  local id, merchant, location, actor, what, reason, finding, buyer, token, entries, due =
    unpack(command, 1, 11)
  if not are_indexes(first + 1, first + 1) then return {'invalid', 'index'} end
  if changed_since(KEYS[first], token) then return {'version_conflict', 0} end
  for _, entry in pairs(entries) do
    if type(entry[CLAIM_LINES]) ~= 'table' then return {'invalid', 'claims'} end
  end
  drop_what_is_over(entries)
  changed[KEYS[first]] = true
  touch_claims({key = KEYS[first], entries = entries})
  for _, one in ipairs(due) do
    write('ZADD', KEYS[first + 1], integer(math.max(one[2], now)), one[1])
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, buyer, entries})}
end

local function repair_listing(command, first)
  local id, merchant, location, actor, what, reason, finding, sku, member =
    unpack(command, 1, 9)
  local row_key, skus_key, locations_key = KEYS[first], KEYS[first + 1], KEYS[first + 2]
  if not are_indexes(first + 1, first + 2) then return {'invalid', 'index'} end
  if sku ~= '' and redis.call('EXISTS', row_key) == 1 then
    write('ZADD', skus_key, '0', sku)
    write('ZADD', locations_key, '0', member)
  else
    local others = redis.call('ZCARD', skus_key)
    if redis.call('ZSCORE', skus_key, sku) then others = others - 1 end
    write('ZREM', skus_key, sku)
    if others > 0 then
      write('ZADD', locations_key, '0', member)
    else
      write('ZREM', locations_key, member)
    end
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, sku})}
end

local function repair_seen(command, first)
  local id, merchant, location, actor, what, reason, finding, operation, token, fingerprint,
    reply, keep_ms = unpack(command, 1, 12)
  local key = KEYS[first]
  if type(reply) ~= 'table' then return {'invalid', 'reply'} end
  if not is_integer(keep_ms, 1, MAX_TOTAL) then return {'invalid', 'keep_ms'} end
  if changed_since(key, token) then return {'version_conflict', 0} end
  changed[key] = true
  write('SET', key, cmsgpack.pack({fingerprint, {'ok', unpack(reply)}}), 'PX',
    integer(keep_ms))
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, operation, fingerprint, reply, keep_ms})}
end

local function repair_source(command, first)
  local id, merchant, location, actor, what, reason, finding, source, token, state, prints =
    unpack(command, 1, 11)
  local key = KEYS[first]
  if not are_indexes(first + 2, first + 3) then return {'invalid', 'index'} end
  if type(state) ~= 'table' or #state ~= 6 then return {'invalid', 'state'} end
  for i = 2, 5 do
    if not is_integer(state[i], 0, MAX_VERSION) then return {'invalid', 'state'} end
  end
  if changed_since(key, token, SOURCE_FIELDS) then return {'version_conflict', 0} end
  changed[key] = true
  write('DEL', key)
  write('HSET', key, 'mode', state[1], 'heard_at', integer(state[2]), 'occurred_at',
    integer(state[3]))
  if state[5] > 0 then
    write('HSET', key, 'watermark', integer(state[4]), 'highest', integer(state[5]),
      'ahead', cmsgpack.pack(state[6]), 'skipped', '0')
  end
  write('DEL', KEYS[first + 1])
  if prints ~= '' then write('SET', KEYS[first + 1], prints) end
  write('ZADD', KEYS[first + 2], '0', source)
  write('ZADD', KEYS[first + 3], '0', command[12])
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, source, state})}
end

local function repair_set_aside(command, first)
  local id, merchant, location, actor, what, reason, finding, event, token, body =
    unpack(command, 1, 10)
  local key = KEYS[first]
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'hash' and kind ~= 'none' then return {'invalid', 'quarantine'} end
  local found = redis.call('HGET', key, event)
  local looks = redis.sha1hex(found and ('=' .. found) or '-')
  if changed[key .. event] or looks ~= token then return {'version_conflict', 0} end
  changed[key .. event] = true
  if body == '' then
    write('HDEL', key, event)
  else
    write('HSET', key, event, body)
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, event})}
end

local function repair_remove(command, first, last)
  local id, merchant, location, actor, what, reason, finding, name, token, reservation =
    unpack(command, 1, 10)
  local key = KEYS[first]
  local kind = redis.call('TYPE', key)['ok']
  if token == 'type:' .. kind then
    -- Of a key that holds another type than it should, its type is all that was looked at.
    if changed[key] then return {'version_conflict', 0} end
  else
    local fields
    if kind == 'hash' then fields = reservation ~= '' and RESERVATION_FIELDS or ROW_FIELDS end
    if changed_since(key, token, fields) then return {'version_conflict', 0} end
  end
  if reservation ~= '' and not are_indexes(first + 1, last) then return {'invalid', 'index'} end
  changed[key] = true
  write('DEL', key)
  if reservation ~= '' then index_writes(reservation, nil, nil, nil, first + 1, first, last) end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, name})}
end

local function repair_range(command)
  local id, merchant, location, actor, what, reason, finding, from, to = unpack(command, 1, 9)
  if not is_integer(from, 0, MAX_VERSION) or not is_integer(to, from, MAX_VERSION) then
    return {'invalid', 'range'}
  end
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, from, to})}
end

-- Sent alone in its group: it moves where the operations of the group are counted from.
local function repair_sequence(command)
  local id, merchant, location, actor, what, reason, finding, least = unpack(command, 1, 8)
  if not is_integer(least, 0, MAX_VERSION) then return {'invalid', 'least'} end
  if sequence >= least then return {'replayed', 0} end
  local before = sequence
  sequence = least
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, before, least})}
end

local REPAIRS = {
  row = repair_row, reservation = repair_reservation, index = repair_index,
  queue = repair_queue, count = repair_count, claims = repair_claims, listing = repair_listing,
  seen = repair_seen, remove = repair_remove, gap = repair_range,
  known = repair_range, sequence = repair_sequence, source = repair_source,
  set_aside = repair_set_aside,
}

local replies = each_command(function(first, last, ...)
  local command = {...}
  local handle = REPAIRS[command[5]]
  if not handle then return {'invalid', 'what'} end
  return handle(command, first, last)
end)

-- After this point nothing may fail.
for i = 1, #writes do redis.call(unpack(writes[i])) end
write_rows()
write_claims()
write_listing()
write_ledger()
return table.concat(replies)
