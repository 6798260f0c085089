#!lua
-- fill: give what is free on a row's shelf to those who wait for it, in the order of their turns.
--
-- Command {merchant, location, actor, sku, reservations, passed}; those of the row's queue behind the
--          first `passed`, as the caller read them
-- Keys     row, its queue, then each of `reservations`
-- Returns  {'ok', reservations filled or filled in part, units given, units still free, is there more,
--            how many of `reservations` still wait}
--            more: the queue had others there than were declared, or more of them, and units are
--            still free; read on behind those who still wait and call again
-- Ledger   fill, detail {sku, units, left}; an operation for each reservation
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include turns

-- Of the free units those that a reservation may have of what it waits for. What was promised by a day
-- goes before all; else what the pools of other channels are guaranteed stays for them. served_on()
-- in engine/outlook.py foretells what comes of it.
local function units_for(reservation, row, sku, free)
  local entry = reservation and reservation.waiting and reservation.waiting[sku]
  if not entry then return 0 end
  if entry[WAIT_DATED] or not row.terms then return free end
  local channel = is_pooled(reservation.extras, sku) and reservation.extras.channel
  local of_others = unmet_minimums(row.terms, channel)
  return math.max(0, free - of_others)
end

-- Gives a reservation up to `free` units of what it waits for. Returns how many.
local function give(reservation, id, row, sku, free, queue_key)
  local entry = reservation.waiting[sku]
  local units = math.min(free, entry[WAIT_UNITS])
  wait_less(reservation, id, row, sku, units, queue_key)
  changed_waits[reservation.key] = reservation
  return units
end

local replies = each_command(function(first, _, merchant, location, actor, sku, ids, passed)
  local row, queue_key = row_at(KEYS[first]), KEYS[first + 1]
  local head = redis.call('ZRANGEBYSCORE', queue_key, '-inf', '+inf', 'LIMIT', passed, #ids + 1)
  local filled, given, waiting, free = 0, 0, 0, unreserved(row)
  local is_more = #head > #ids
  for i, id in ipairs(ids) do
    if free <= 0 then break end
    if head[i] ~= id then
      is_more = true
      break
    end
    local reservation = reservation_at(KEYS[first + 1 + i])
    local units, left = units_for(reservation, row, sku, free), 0
    if units > 0 then
      units = give(reservation, id, row, sku, units, queue_key)
      left = reservation.waiting[sku] and reservation.waiting[sku][WAIT_UNITS] or 0
      local line = change_row(row, sku, 0, units, 0, 0, nil, 0, -units)
      record('fill', id, merchant, location, actor, '', {line}, {sku, units, left})
      filled, given, free = filled + 1, given + units, free - units
    end
    if units == 0 or left > 0 then waiting = waiting + 1 end
  end
  return {'ok', filled, given, math.max(0, free), is_more and free > 0, waiting}
end)

-- After this point nothing may fail.
write_rows()
write_waits()
write_pledges()
write_ledger()
return table.concat(replies)
