#!lua
-- move: units came to the shelf or left it, outside of any reservation.
--
-- Command {id, merchant, location, actor, fingerprint, kind, sku, quantity, expected version,
--          may overdraw, location member, detail}
--   kind     receive, return, transfer_in (+), sale, transfer_out (-), adjust (signed), count
--            (absolute: what is on the shelf now)
--   expected version  of the row, or -1 for any
--   may overdraw      record a departure even beyond what the books have; see rows.lua
--   location member   of the partition's index of locations
--   detail   {reason, reference, source, occurred_at}, kept in the ledger as given
-- Keys     row, SKU index of the location, location index of the partition, idempotency record
-- Returns  {'ok' | 'replayed', at, sequence, version, on_hand, reserved, safety_stock, deficit,
--           change of on_hand, low_stock_threshold where the row has one}
--          {'key_reused'}
--          {'version_conflict', version}
--          {'insufficient_on_hand', {{sku, requested, on_hand, known}}}
--          {'limit_exceeded', field, most}, {'invalid', field}
-- Ledger   move, detail {kind, quantity, reason, reference, source, occurred_at}
-- @include group
-- @include rows
-- @include ledger
-- @include seen
-- @include listing

local DIRECTIONS = {receive = 1, ['return'] = 1, transfer_in = 1, sale = -1, transfer_out = -1}

-- The deltas of on_hand and deficit, or nil and the refusal.
local function deltas(row, kind, sku, quantity, may_overdraw)
  if kind == 'count' then
    if not is_integer(quantity, 0, MAX_TOTAL) then return nil, {'invalid', 'quantity'} end
    return quantity - row.on_hand, -row.deficit
  end
  local change = quantity
  if kind == 'adjust' then
    if quantity == 0 or not is_integer(quantity, -MAX_QUANTITY, MAX_QUANTITY) then
      return nil, {'invalid', 'quantity'}
    end
  else
    if not is_integer(quantity, 1, MAX_QUANTITY) then return nil, {'invalid', 'quantity'} end
    if not DIRECTIONS[kind] then return nil, {'invalid', 'type'} end
    change = quantity * DIRECTIONS[kind]
  end
  if not may_overdraw and -change > row.on_hand then
    return nil, {'insufficient_on_hand', {{sku, -change, row.on_hand, row.exists}}}
  end
  local on_hand, deficit = shelf_deltas(row, change)
  if row.on_hand + on_hand > MAX_TOTAL or row.deficit + deficit > MAX_TOTAL then
    return nil, {'limit_exceeded', 'quantity', MAX_TOTAL}
  end
  return on_hand, deficit
end

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, kind,
    sku, quantity, expected, may_overdraw, member, detail)
  local earlier = seen_reply(KEYS[first + 3], fingerprint)
  if earlier then return earlier end
  local row = row_at(KEYS[first])
  if expected >= 0 and expected ~= row.version then
    return {'version_conflict', row.version}
  end
  local on_hand, deficit = deltas(row, kind, sku, quantity, may_overdraw)
  if not on_hand then return deficit end

  list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
  local line = change_row(row, sku, on_hand, 0, 0, deficit)
  local at_sequence = record('move', id, merchant, location, actor, fingerprint, {line},
    {kind, quantity, detail[1], detail[2], detail[3], detail[4]})
  local reply = {'ok', now, at_sequence, row.version, row.on_hand, row.reserved,
    row.safety_stock, row.deficit, on_hand}
  if row.low_stock_threshold > 0 then reply[10] = row.low_stock_threshold end
  remember(KEYS[first + 3], fingerprint, reply)
  return reply
end)

-- After this point nothing may fail.
write_rows()
write_listing()
write_seen()
write_ledger()
return table.concat(replies)
