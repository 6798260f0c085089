#!lua flags=allow-oom
-- release: the shopper or the merchant gives the units back.
--
-- Command {id, merchant, actor, reason, skus, move}; skus of the lines, as the caller knows them
--   move  missing, or {id of the move, state, expires_at, lines, stands_for, how many are proposed}:
--         release it only if it is still so, since just that is held at another location; from then
--         on its order_ref is the move's id
-- Keys     reservation, open index of its location, then the row of each of `skus`, then of a
--          reservation with extras the queue of each row and, of one with a buyer, what counts for
--          them of each row
-- Returns  {'ok' | 'replayed', ...reservation}  see describe()
--          {'not_found'}, {'lines_changed'}     the second: read the lines anew and call again
--          {'ended', ...reservation}            committed or expired before
--          {'not_due', ...reservation}          it is not what `move` says any more
-- Ledger   release, detail {state before, expires_at before, reason, stands_for, move}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include endings

local NOTHING_PICKED = {}

local MOVE_ID, MOVE_STATE, MOVE_EXPIRES_AT, MOVE_LINES, MOVE_STANDS_FOR, MOVE_PROPOSED =
  1, 2, 3, 4, 5, 6

-- Whether a reservation is what was seen of it when its units were held elsewhere.
local function is_as_seen(reservation, move)
  return reservation.state == move[MOVE_STATE] and reservation.expires_at == move[MOVE_EXPIRES_AT]
    and is_same_list(reservation.body[BODY_LINES], move[MOVE_LINES])
    and is_same_list(stands_for(reservation) or {}, move[MOVE_STANDS_FOR])
    and #(is_proposed(reservation) or {}) == move[MOVE_PROPOSED]
end

local replies = each_command(function(first, last, id, merchant, actor, reason, skus, move)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  if reservation.state == 'released' then return describe('replayed', reservation) end
  if not is_live(reservation) then return describe('ended', reservation) end
  if move and not is_as_seen(reservation, move) then return describe('not_due', reservation) end
  local row_keys = declared_rows(reservation, skus, first + 2)
  local pledge_keys = declared_pledges(reservation, skus, first + 2 + #skus, last)
  if not row_keys or not pledge_keys then return {'lines_changed'} end

  local state, expires_at = reservation.state, reservation.expires_at
  local lines = settle_rows(reservation, id, row_keys, pledge_keys, NOTHING_PICKED)
  end_reservation(reservation, id, 'released', KEYS[first + 1])
  local detail = {state, expires_at, reason, stands_for(reservation)}
  if move then
    detail[4], detail[5] = detail[4] or {}, move[MOVE_ID]
    reservation.order_ref, reservation.moved = move[MOVE_ID], true
  end
  record('release', id, merchant, reservation.body[BODY_LOCATION], actor, '', lines, detail)
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
