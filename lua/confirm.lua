#!lua flags=allow-oom
-- confirm: the order is placed, so the hold stays until it is committed or released.
--
-- Command {id, merchant, actor, order_ref}; order_ref '' keeps the one given at reserve
-- Keys     reservation
-- Returns  {'ok' | 'replayed', ...reservation}  see describe()
--          {'not_found'}
--          {'ended', ...reservation}            committed, released or expired before
--          {'proposed', ...reservation}         somebody has to accept its substitutes first
--          {'key_reused', ...reservation}       confirmed before for another order
-- Ledger   confirm, detail {order_ref, expires_at before}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations

local replies = each_command(function(first, _, id, merchant, actor, order_ref)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  if reservation.state == 'confirmed' then
    local confirmed_for = reservation.order_ref
    if confirmed_for == '' then confirmed_for = reservation.body[BODY_ORDER_REF] end
    if order_ref ~= '' and order_ref ~= confirmed_for then
      return describe('key_reused', reservation)
    end
    return describe('replayed', reservation)
  end
  if reservation.state ~= 'held' then return describe('ended', reservation) end
  if is_proposed(reservation) then return describe('proposed', reservation) end

  local expires_at = reservation.expires_at
  reservation.id = id
  reservation.state = 'confirmed'
  reservation.confirmed_at = now
  reservation.expires_at = 0
  reservation.order_ref = order_ref
  touch_reservation(reservation)
  record('confirm', id, merchant, reservation.body[BODY_LOCATION], actor, '', {},
    {order_ref, expires_at})
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_reservations()
write_ledger()
return table.concat(replies)
