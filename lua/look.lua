#!lua flags=allow-oom
-- look: tell what became of a reservation, for whoever keeps a claim for it in another partition.
--
-- Command {id, merchant}
-- Keys     reservation
-- Returns  {'ok', now, state, expires_at, ended_at, picked, body}
--          {'not_found', now}    the merchant has none of this id
-- Ledger   nothing. But the partition's clock never goes back behind `now`: what has lapsed by it
--          can have no effect here any more.
-- @include group
-- @include rows
-- @include ledger
-- @include reservations

local function describe_seen(code, reservation)
  local picked = reservation.picked
  if picked == '' then picked = array_of(0) end
  return array_of(7) .. cmsgpack.pack(code, now, reservation.state, reservation.expires_at,
    reservation.ended_at) .. picked .. reservation.packed_body
end

local replies = each_command(function(first, _, _, merchant)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found', now} end
  return describe_seen('ok', reservation)
end)

local function write_clock()
  if now > high_water and not meta[3] then redis.call('HSET', META, 'clock_ms', integer(now)) end
end

-- After this point nothing may fail.
write_clock()
return table.concat(replies)
