#!lua flags=allow-oom
-- part: a part of a split row hears what its home says, and tells how it is (see lib/split.lua).
--
-- Command {id, merchant, location, actor, sku, location member, home, epoch, open, granted, recall,
--          divisor, picked}
--   home      the partition of the row itself
--   epoch, open  the plan: whether this part may promise by it. An older plan is not heard; within a
--             plan a part that is open stays open, and closing all is a plan of its own
--   granted   units that home ever granted to this part
--   recall    units to give back, at most, and not more than one `divisor`th of what is free
--   picked    what home knows of the units that left the shelf from here
-- Keys     row, SKU index of the location, location index of the partition, recent changes of the row
-- Returns  {'ok', version, received, returned, picked, reserved, heard, free, {{at, units}, ...}}
--            what is free is what can be promised here, the pairs are when units left that home does
--            not know of
--          {'invalid', field}
-- Ledger   part, detail {split}
-- @include group
-- @include rows
-- @include ledger
-- @include listing
-- @include asof
-- @include split

-- When the last `units` units left the shelf, the latest first; less than that where it is not known.
local function departures(past, units)
  local found = {}
  if units <= 0 then return found end
  local deltas = deltas_of(past)
  for i = #deltas, 1, -1 do
    local at, left = deltas[i][1], math.min(units, -deltas[i][2])
    if deltas[i][2] == FLOOR or units == 0 then break end
    units = units - left
    local last = found[#found]
    if last and last[1] == at then last[2] = last[2] + left else found[#found + 1] = {at, left} end
  end
  return found
end

local function wrong_number(epoch, open, granted, recall, divisor, picked)
  if not is_integer(epoch, 1, MAX_EXACT) then return 'epoch' end
  if open ~= 0 and open ~= 1 then return 'open' end
  if not is_integer(granted, 0, MAX_EXACT) then return 'granted' end
  if not is_integer(recall, 0, MAX_TOTAL) then return 'recall' end
  if not is_integer(divisor, 1, MAX_QUANTITY) then return 'divisor' end
  if not is_integer(picked, 0, MAX_EXACT) then return 'picked' end
end

-- Hears the plan. Returns true where it is news.
local function hear_plan(part, epoch, open)
  if epoch < part.epoch or (epoch == part.epoch and open <= part.open) then return false end
  part.epoch, part.open = epoch, open
  return true
end

local replies = each_command(function(first, _, id, merchant, location, actor, sku, member, home,
    epoch, open, granted, recall, divisor, picked_known)
  local bad_field = wrong_number(epoch, open, granted, recall, divisor, picked_known)
  if bad_field then return {'invalid', bad_field} end
  local row = row_at(KEYS[first])
  -- A rebuild may have left an empty row that has forgotten what it was.
  if not row.spread.is_part and row.on_hand + row.reserved > 0 then return {'invalid', 'home'} end
  local past = past_of(row, KEYS[first + 3])
  local part = part_of(row)
  -- Units are given back only to who knows the plan: others may have wanted them for an older one.
  local is_current = epoch >= part.epoch
  local news = hear_plan(part, epoch, open)
  local gained = math.max(0, granted - part.received)
  local units = row.on_hand + gained - row.reserved
  local back = is_current and math.min(recall, math.ceil(math.max(0, units) / divisor)) or 0
  if news or gained > 0 or back > 0 then
    part.received, part.returned = part.received + gained, part.returned + back
    list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
    set_split(row, part_text(part, home))
    local line = change_row(row, sku, gained - back, 0, 0, 0)
    record('part', id, merchant, location, actor, '', {line}, {row.split})
  end
  local picked = part.received - part.returned - row.on_hand
  return {'ok', row.version, part.received, part.returned, picked, row.reserved,
    2 * part.epoch + part.open, row.on_hand - row.reserved, departures(past, picked - picked_known)}
end)

-- After this point nothing may fail.
write_rows()
write_splits()
write_listing()
write_ledger()
return table.concat(replies)
