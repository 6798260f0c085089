#!lua flags=allow-oom
-- expire: take back the units of a hold whose time is up.
--
-- Command {id, merchant, actor, skus}; skus of the lines, as the caller read them
-- Keys     reservation, open index of its location, then the row of each of `skus`, then of a
--          reservation with extras the queue of each row and, of one with a buyer, what counts for
--          them of each row
-- Returns  {'ok', ...reservation}   expired now; see describe()
--          {'not_due', ...}         extended or confirmed since the caller looked
--          {'ended', ...}           some ending came first
--          {'not_found'}, {'lines_changed'}
-- Ledger   expire, detail {state before, expires_at before, stands_for}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include endings

local NOTHING_PICKED = {}

local replies = each_command(function(first, last, id, merchant, actor, skus)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  if not is_live(reservation) then return describe('ended', reservation) end
  if reservation.state ~= 'held' or reservation.expires_at > now then
    return describe('not_due', reservation)
  end
  local row_keys = declared_rows(reservation, skus, first + 2)
  local pledge_keys = declared_pledges(reservation, skus, first + 2 + #skus, last)
  if not row_keys or not pledge_keys then return {'lines_changed'} end

  local expires_at = reservation.expires_at
  local lines = settle_rows(reservation, id, row_keys, pledge_keys, NOTHING_PICKED)
  end_reservation(reservation, id, 'expired', KEYS[first + 1])
  record('expire', id, merchant, reservation.body[BODY_LOCATION], actor, '', lines,
    {'held', expires_at, stands_for(reservation)})
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
