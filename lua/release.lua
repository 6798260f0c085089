#!lua flags=allow-oom
-- release: the shopper or the merchant gives the units back.
--
-- Command {id, merchant, actor, reason, skus}; skus of the lines, as the caller knows them
-- Keys     reservation, open index of its location, then the row of each of `skus`, then of a
--          reservation with extras the queue of each row and, of one with a buyer, what counts for
--          them of each row
-- Returns  {'ok' | 'replayed', ...reservation}  see describe()
--          {'not_found'}, {'lines_changed'}     the second: read the lines anew and call again
--          {'ended', ...reservation}            committed or expired before
-- Ledger   release, detail {state before, expires_at before, reason, stands_for}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include endings

local NOTHING_PICKED = {}

local replies = each_command(function(first, last, id, merchant, actor, reason, skus)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  if reservation.state == 'released' then return describe('replayed', reservation) end
  if not is_live(reservation) then return describe('ended', reservation) end
  local row_keys = declared_rows(reservation, skus, first + 2)
  local pledge_keys = declared_pledges(reservation, skus, first + 2 + #skus, last)
  if not row_keys or not pledge_keys then return {'lines_changed'} end

  local state, expires_at = reservation.state, reservation.expires_at
  local lines = settle_rows(reservation, id, row_keys, pledge_keys, NOTHING_PICKED)
  end_reservation(reservation, id, 'released', KEYS[first + 1])
  record('release', id, merchant, reservation.body[BODY_LOCATION], actor, '', lines,
    {state, expires_at, reason, stands_for(reservation)})
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
