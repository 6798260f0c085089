#!lua
-- fill: give what is free on a row's shelf to those who wait for it, in the order of their turns.
--
-- Command {merchant, location, actor, sku, reservations}; the first of the row's queue, as the caller
--          read them
-- Keys     row, its queue, then each of `reservations`
-- Returns  {'ok', reservations filled or filled in part, units given, units still free, is there more}
--            more: the queue had others at its head than were declared, or more of them, and units
--            are still free; read it anew and call again
-- Ledger   fill, detail {sku, units, left}; an operation for each reservation
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include pledges

local changed_waits = {}

-- Gives a reservation up to `free` units of what it waits for. Returns how many.
local function give(reservation, id, row, sku, free, queue_key)
  local entry = reservation.waiting[sku]
  local units = math.min(free, entry[WAIT_UNITS])
  wait_less(reservation, id, row, sku, units, queue_key)
  changed_waits[reservation.key] = reservation
  return units
end

local replies = each_command(function(first, _, merchant, location, actor, sku, ids)
  local row, queue_key = row_at(KEYS[first]), KEYS[first + 1]
  local head = redis.call('ZRANGEBYSCORE', queue_key, '-inf', '+inf', 'LIMIT', 0, #ids + 1)
  local filled, given, free = 0, 0, unreserved(row)
  local is_more = #head > #ids
  for i, id in ipairs(ids) do
    if free <= 0 then break end
    if head[i] ~= id then
      is_more = true
      break
    end
    local reservation = reservation_at(KEYS[first + 1 + i])
    if reservation and reservation.waiting and reservation.waiting[sku] then
      local units = give(reservation, id, row, sku, free, queue_key)
      local left = reservation.waiting[sku] and reservation.waiting[sku][WAIT_UNITS] or 0
      local line = change_row(row, sku, 0, units, 0, 0, nil, 0, -units)
      record('fill', id, merchant, location, actor, '', {line}, {sku, units, left})
      filled, given, free = filled + 1, given + units, free - units
    end
  end
  return {'ok', filled, given, math.max(0, free), is_more and free > 0}
end)

local function write_waits()
  for key, reservation in pairs(changed_waits) do
    if next(reservation.waiting) then
      redis.call('HSET', key, 'waiting', cmsgpack.pack(reservation.waiting))
    else
      redis.call('HDEL', key, 'waiting')
    end
  end
end

-- After this point nothing may fail.
write_rows()
write_waits()
write_pledges()
write_ledger()
return table.concat(replies)
