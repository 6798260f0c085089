#!lua
-- slip: put on record which of those who wait for a row cannot be served by the day that they were
-- promised, and by which they are expected now; or that they can be again.
--
-- Command {merchant, location, actor, sku, version, before, reservations}
--   version       of the row, as the caller saw it before it read the row's queue
--   before        units that are waited for by those who stand in front of these
--   reservations  of the row's queue, in its order
-- Keys     row, then each of `reservations`
-- Returns  {'ok', version, before those behind them, how many were put on record,
--           {{reservation, order_ref, units, promised by, expected on}, ...}}
--            of all that are late; expected on is 'later' where nobody can say
--          {'version_conflict', version}  the row changed: begin anew
-- Ledger   slip, detail {sku, units, promised by, expected on}; an operation for each reservation.
--          The day that was promised is expected where it can be kept again
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include turns

local LATER = 'later'

-- When so many units are free for who waits: '' where they are now.
local function day_of_units(row, days, by_day, units)
  local left = unreserved(row) - row.deficit
  if left >= units then return '' end
  for _, day in ipairs(days) do
    left = left + (by_day[day] or 0)
    if left >= units then return day end
  end
  return LATER
end

-- Has an entry be late until a day, or '' for no longer.
local function set_late(row, entry, expected)
  local terms, units = copied(row.terms), entry[WAIT_UNITS]
  local late = (terms.late or 0) - (entry[WAIT_LATE] ~= '' and units or 0)
    + (expected ~= '' and units or 0)
  terms.late = late > 0 and late or nil
  entry[WAIT_LATE] = expected
  row.terms, row.changes_terms = terms, true
end

local replies = each_command(function(first, _, merchant, location, actor, sku, version, before, ids)
  local row = row_at(KEYS[first])
  if row.version ~= version then return {'version_conflict', row.version} end
  if not row.terms then return {'ok', row.version, before, 0, {}} end
  local days, by_day = days_of(row.terms), coming(row.terms)
  local told, late = 0, {}
  for i, id in ipairs(ids) do
    local reservation = reservation_at(KEYS[first + i])
    local entry = reservation and reservation.waiting and reservation.waiting[sku]
    if entry then
      local units, promised = entry[WAIT_UNITS], entry[WAIT_DAY]
      before = before + units
      if entry[WAIT_DATED] then
        local expected = day_of_units(row, days, by_day, before)
        if expected <= promised then expected = '' end
        if expected ~= entry[WAIT_LATE] then
          set_late(row, entry, expected)
          changed_waits[reservation.key] = reservation
          local line = change_row(row, sku, 0, 0, 0, 0)
          record('slip', id, merchant, location, actor, '', {line},
            {sku, units, promised, expected ~= '' and expected or promised})
          told = told + 1
        end
        if expected ~= '' then
          local order_ref = reservation.order_ref
          if order_ref == '' then order_ref = reservation.body[BODY_ORDER_REF] end
          late[#late + 1] = {id, order_ref, units, promised, expected}
        end
      end
    end
  end
  return {'ok', row.version, before, told, late}
end)

-- After this point nothing may fail.
write_rows()
write_waits()
write_ledger()
return table.concat(replies)
