#!lua
-- repair: put right what the audit found, through the ledger. Nothing is ever edited silently.
--
-- Command {keys, id, merchant, location, actor, what, reason, finding, ...what's own arguments}
--   'row'          sku, found version, found levels, right version, right levels, deltas
--                  Keys: row, SKU index, location index. The row gets the right levels if it still
--                  is as it was found (found version -1: missing). deltas go to the ledger.
--   'reservation'  reservation id, {field, value, ...} of its hash, open
--                  Keys: reservation, open index. A hash that is gone comes back.
--   'index'        reservation id
--                  Keys: reservation, open index. Both indexes are made to say what the hash says.
--   'gap'          first, last
--                  Keys: none. Says that the loss of these sequences is known.
-- Returns  {'ok', sequence}, {'version_conflict', version} where things changed since the audit,
--          {'invalid', field}
-- Ledger   repair, detail {what, reason, ...}; see docs/reference/ledger.md
-- @include group
-- @include rows
-- @include ledger
-- @include listing

local LEVELS = {'on_hand', 'reserved', 'safety_stock', 'deficit'}
local indexes, hashes = {}, {}

local function same_levels(row, found)
  for i = 1, #LEVELS do
    if row[LEVELS[i]] ~= found[i] then return false end
  end
  return true
end

local function repair_row(command, first)
  local _, id, merchant, location, actor, what, reason, finding, sku, found_version, found,
    version, right, deltas, member = unpack(command, 1, 15)
  local row = row_at(KEYS[first])
  local live_version = row.exists and row.version or -1
  if live_version ~= found_version or (row.exists and not same_levels(row, found)) then
    return {'version_conflict', row.version}
  end
  for i = 1, #LEVELS do
    if not is_integer(right[i], 0, MAX_TOTAL) then return {'invalid', LEVELS[i]} end
  end
  list_row({exists = false}, sku, KEYS[first + 1], member, KEYS[first + 2])
  local line = change_row(row, sku, right[1] - row.on_hand, right[2] - row.reserved,
    right[3] - row.safety_stock, right[4] - row.deficit)
  row.version = version
  line[2] = version
  line[4] = deltas
  return {'ok', record('repair', id, merchant, location, actor, '', {line},
    {what, reason, finding, found_version, found})}
end

local function repair_reservation(command, first)
  local _, id, merchant, location, actor, what, reason, finding, reservation, fields, open =
    unpack(command, 1, 11)
  if redis.call('EXISTS', KEYS[first]) == 1 then return {'version_conflict', 0} end
  hashes[#hashes + 1] = {KEYS[first], fields, open}
  indexes[#indexes + 1] = {reservation, KEYS[first], KEYS[first + 1]}
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, reservation})}
end

local function repair_index(command, first)
  local _, id, merchant, location, actor, what, reason, finding, reservation =
    unpack(command, 1, 9)
  indexes[#indexes + 1] = {reservation, KEYS[first], KEYS[first + 1]}
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, finding, reservation})}
end

local function repair_gap(command)
  local _, id, merchant, location, actor, what, reason, finding, from, to = unpack(command, 1, 10)
  return {'ok', record('repair', id, merchant, location, actor, '', {},
    {what, reason, from, to, finding})}
end

local REPAIRS = {
  row = repair_row, reservation = repair_reservation, index = repair_index, gap = repair_gap,
}

local replies = each_command(function(command, first)
  local handle = REPAIRS[command[6]]
  if not handle then return {'invalid', 'what'} end
  return handle(command, first)
end)

local function write_indexes()
  for _, entry in ipairs(indexes) do
    local id, key, open_key = entry[1], entry[2], entry[3]
    local fields = redis.call('HMGET', key, 'state', 'expires_at', 'body')
    local state = fields[1]
    if state == 'held' then
      redis.call('ZADD', HOLDS, fields[2], id)
    else
      redis.call('ZREM', HOLDS, id)
    end
    if state == 'held' or state == 'confirmed' then
      redis.call('ZADD', open_key, integer(cmsgpack.unpack(fields[3])[3]), id)
    else
      redis.call('ZREM', open_key, id)
    end
  end
end

-- After this point nothing may fail.
for _, hash in ipairs(hashes) do
  redis.call('HSET', hash[1], unpack(hash[2]))
  if not hash[3] then redis.call('PEXPIRE', hash[1], integer(limits.retention_ms)) end
end
write_rows()
write_listing()
write_indexes()
write_ledger()
return cmsgpack.pack(replies)
