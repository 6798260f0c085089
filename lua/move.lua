#!lua
-- move: units came to the shelf or left it, outside of any reservation.
--
-- Command {id, merchant, location, actor, fingerprint, kind, sku, quantity, expected version,
--          may overdraw, location member, detail}
--   kind     receive, return, transfer_in (+), sale, transfer_out (-), adjust (signed), count
--            (absolute: what was on the shelf at occurred_at)
--   occurred_at       0 for now. What happened before the count that the row stands on, or at its
--                     moment, changes nothing any more: it is recorded as superseded
--   expected version  of the row, or -1 for any
--   may overdraw      record a departure even beyond what the books have; see rows.lua
--   location member   of the partition's index of locations
--   detail   {reason, reference, source, occurred_at, supply}, kept in the ledger as given; supply,
--            which may be missing, is the one that came with a receive or a transfer_in
-- Keys     row, SKU index of the location, location index of the partition, idempotency record,
--          recent changes of the row
-- Returns  {'ok' | 'replayed', at, sequence, version, on_hand, reserved, safety_stock, deficit,
--           change of on_hand, low_stock_threshold, offline_buffer}; the last two as add_settings() has them
--          {'key_reused'}
--          {'version_conflict', version}
--          {'supply_not_found', {ref}}  the row expects none of that name, but these
--          {'insufficient_on_hand', {{sku, requested, on_hand, known}}}
--          {'limit_exceeded', field, most}, {'invalid', field}
--          {'split', {{sku, units}}}    so many must be free at home first; see is_short_at_home()
-- Ledger   move, detail {kind, quantity, reason, reference, source, occurred_at, superseded, later,
--          supply}
-- @include group
-- @include rows
-- @include ledger
-- @include seen
-- @include listing
-- @include asof
-- @include events
-- @include arrivals

-- What the movement comes to (see lib/events.lua), or nil and the refusal.
local function outcome(row, past, id, kind, sku, quantity, may_overdraw, at)
  local bad_field = wrong_event(kind, quantity)
  if bad_field then return nil, {'invalid', bad_field} end
  if at > now + limits.ahead_ms then return nil, {'invalid', 'occurred_at'} end
  local event = weigh(row, past, id, kind, quantity, at)
  if event.too_late then return nil, {'invalid', 'occurred_at'} end
  local leaves = event.superseded and 0 or -(event.units or 0)
  if not may_overdraw and leaves > row.on_hand then
    return nil, {'insufficient_on_hand', {{sku, leaves, row.on_hand, row.exists}}}
  end
  if event.too_much then return nil, {'limit_exceeded', 'quantity', MAX_TOTAL} end
  return event
end

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, kind,
    sku, quantity, expected, may_overdraw, member, detail)
  local earlier = seen_reply(KEYS[first + 3], fingerprint)
  if earlier then return earlier end
  local row = row_at(KEYS[first])
  if expected >= 0 and expected ~= row.version then
    return {'version_conflict', row.version}
  end
  local supply = detail[5]
  if supply and not comes_with_supply(kind) then return {'invalid', 'supply'} end
  if supply and not supply_of(row, supply) then
    return {'supply_not_found', expected_refs(row)}
  end
  local past = past_of(row, KEYS[first + 4])
  local event, refused = outcome(row, past, id, kind, sku, quantity, may_overdraw, detail[4])
  if not event then return refused end
  if is_short_at_home(row, -event.on_hand) then return {'split', {{sku, -event.on_hand}}} end

  list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
  take_in(past, event, id)
  local on_hand = event.on_hand
  -- What a later count has already came with the supply all the same.
  if supply then take_from_supply(row, supply, quantity) end
  local line = change_row(row, sku, on_hand, 0, 0, event.deficit)
  local at_sequence = record('move', id, merchant, location, actor, fingerprint, {line},
    {kind, quantity, detail[1], detail[2], detail[3], detail[4], event.superseded, event.later,
      supply})
  local reply = {'ok', now, at_sequence, row.version, row.on_hand, row.reserved,
    row.safety_stock, row.deficit, on_hand}
  add_settings(reply, row)
  remember(KEYS[first + 3], fingerprint, reply)
  return reply
end)

-- After this point nothing may fail.
write_rows()
write_pasts()
write_listing()
write_seen()
write_ledger()
return table.concat(replies)
