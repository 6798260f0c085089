#!lua
-- slip: put on record which of those who wait for a row cannot be served by the day that they were
-- promised, and by which they are expected now; or that they can be again.
--
-- Command {merchant, location, actor, sku, version, {{reservation, expected on}, ...}}
--   version      of the row, as the caller saw it before it read the row's queue and worked out who
--                is late; see engine/outlook.py
--   expected on  a day, 'later' where nobody can say, or '' where the day that was promised can be
--                kept again
-- Keys     row, then each of the reservations
-- Returns  {'ok', version}
--          {'version_conflict', version}  the row changed: begin anew
-- Ledger   slip, detail {sku, units, promised by, expected on}; an operation for each reservation.
--          The day that was promised is expected where it can be kept again
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include turns

-- Has an entry be late until a day, or '' for no longer.
local function set_late(row, entry, expected)
  local terms, units = copied(row.terms), entry[WAIT_UNITS]
  local late = (terms.late or 0) - (entry[WAIT_LATE] ~= '' and units or 0)
    + (expected ~= '' and units or 0)
  terms.late = late > 0 and late or nil
  entry[WAIT_LATE] = expected
  row.terms, row.changes_terms = terms, true
end

local replies = each_command(function(first, _, merchant, location, actor, sku, version, slips)
  local row = row_at(KEYS[first])
  -- Whatever changes who waits for a row changes its version, too.
  if row.version ~= version then return {'version_conflict', row.version} end
  for i, slip in ipairs(slips) do
    local id, expected, reservation = slip[1], slip[2], reservation_at(KEYS[first + i])
    local entry = reservation and reservation.waiting and reservation.waiting[sku]
    if entry and entry[WAIT_DATED] and entry[WAIT_LATE] ~= expected then
      set_late(row, entry, expected)
      changed_waits[reservation.key] = reservation
      local line = change_row(row, sku, 0, 0, 0, 0)
      record('slip', id, merchant, location, actor, '', {line},
        {sku, entry[WAIT_UNITS], entry[WAIT_DAY], expected ~= '' and expected or entry[WAIT_DAY]})
    end
  end
  return {'ok', row.version}
end)

-- After this point nothing may fail.
write_rows()
write_waits()
write_ledger()
return table.concat(replies)
