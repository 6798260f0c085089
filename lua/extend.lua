#!lua
-- extend: let a hold run on for ttl_ms from now; it never makes a hold end sooner.
--
-- Command {id, merchant, actor, fingerprint, ttl_ms, operation id}
-- Keys     reservation, idempotency record
-- Returns  {'ok' | 'replayed', ...reservation}  as it was just after; see describe()
--          {'not_found'}, {'key_reused'}
--          {'ended', ...reservation}      committed, released or expired before
--          {'not_held', ...reservation}   confirmed: there is no TTL to extend
--          {'limit_exceeded', 'ttl_seconds', most}  the hold would outlive limits.max_hold_ms
--          {'invalid', field}
-- Ledger   extend, detail {expires_at, expires_at before, operation id}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include seen

-- A replay tells of the hold as the first answer did, whatever became of it since. What is
-- remembered of it is {'ok', expires_at, ...}, the rest as append_told() has it.
local ANSWERED_TOLD = 3

local function describe_extended(code, expires_at, body, waiting)
  return described(waiting, code, 'held', expires_at, 0, 0, '') .. array_of(0) .. body .. waiting
end

local replies = each_command(function(first, _, id, merchant, actor, fingerprint, ttl_ms,
    operation)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local earlier = seen_reply(KEYS[first + 1], fingerprint)
  if earlier and earlier[1] == 'replayed' then
    return describe_extended('replayed', earlier[2],
      told_earlier(reservation, earlier, ANSWERED_TOLD))
  end
  if earlier then return earlier end
  if not is_integer(ttl_ms, limits.min_ttl_ms, limits.max_ttl_ms) then
    return {'invalid', 'ttl_seconds'}
  end
  if reservation.state == 'confirmed' then return describe('not_held', reservation) end
  if reservation.state ~= 'held' then return describe('ended', reservation) end
  local before = reservation.expires_at
  local expires_at = math.max(before, now + ttl_ms)
  local latest = reservation.body[BODY_CREATED_AT] + limits.max_hold_ms
  if expires_at > latest then return {'limit_exceeded', 'ttl_seconds', latest - now} end

  reservation.id = id
  reservation.expires_at = expires_at
  touch_reservation(reservation)
  record('extend', id, merchant, reservation.body[BODY_LOCATION], actor, fingerprint, {},
    {expires_at, before, operation})
  remember(KEYS[first + 1], fingerprint, append_told({'ok', expires_at}, reservation))
  return describe_extended('ok', expires_at, reservation.packed_body, waiting_of(reservation))
end)

-- After this point nothing may fail.
write_reservations()
write_seen()
write_ledger()
return table.concat(replies)
