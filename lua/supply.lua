#!lua
-- supply: say how many units of a row are still to come with a supply, and on which day; or that none
-- are.
--
-- Command {id, merchant, location, actor, fingerprint, sku, location member, ref, expected_on,
--          quantity, most_supplies, most_days}
--   ref          the merchant's name of it, unique in the row
--   expected_on  YYYY-MM-DD
--   quantity     0 cancels it
--   most_supplies, most_days  that a row may have; the latter are those of its supplies and of the
--                units that wait
-- Keys     row, SKU index of the location, location index of the partition, idempotency record
-- Returns  {'ok' | 'replayed', at, sequence, version, on_hand, reserved, safety_stock, deficit, ...},
--            the rest as add_settings() has it
--          {'key_reused'}
--          {'supply_not_found', {ref}}     there is none of that name to be cancelled, but these
--          {'limit_exceeded', field, most}
--          {'invalid', field}              split: a row whose units are spread cannot have any
-- Ledger   supply, detail {ref, expected_on, quantity, expected_on before, quantity before}
-- @include group
-- @include rows
-- @include ledger
-- @include settings
-- @include arrivals

local function is_day(text)
  return is_text(text) and string.match(text, '^20%d%d%-[01]%d%-[0-3]%d$') ~= nil
end

-- The field that would pass its limit, and the limit; nil where all is well.
local function limit_passed(row, ref, day, most_supplies, most_days)
  local count, days = 1, {[day] = true}
  for other, supply in pairs(row.terms and row.terms.supplies or {}) do
    if other ~= ref then count, days[supply[SUPPLY_DAY]] = count + 1, true end
  end
  if count > most_supplies then return 'supplies', most_supplies end
  for one in pairs(row.terms and row.terms.waits or {}) do days[one] = true end
  local all = 0
  for _ in pairs(days) do all = all + 1 end
  if all > most_days then return 'expected_on', most_days end
end

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, sku,
    member, ref, day, quantity, most_supplies, most_days)
  local earlier = seen_reply(KEYS[first + 3], fingerprint)
  if earlier then return earlier end
  if not is_text(ref) then return {'invalid', 'ref'} end
  if not is_integer(quantity, 0, MAX_QUANTITY) then return {'invalid', 'quantity'} end
  if quantity > 0 and not is_day(day) then return {'invalid', 'expected_on'} end
  local row = row_at(KEYS[first])
  local before = supply_of(row, ref)
  if quantity == 0 and not before then return {'supply_not_found', expected_refs(row)} end
  if row.spread.is_any then return {'invalid', 'split'} end
  if quantity > 0 then
    local field, most = limit_passed(row, ref, day, most_supplies, most_days)
    if field then return {'limit_exceeded', field, most} end
  end

  list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
  set_supply(row, ref, day, quantity)
  local line = change_row(row, sku, 0, 0, 0, 0)
  local detail = {ref, quantity > 0 and day or '', quantity, before and before[SUPPLY_DAY] or '',
    before and before[SUPPLY_UNITS] or 0}
  return record_setting('supply', row, line, KEYS[first + 3], id, merchant, location, actor,
    fingerprint, detail)
end)

-- After this point nothing may fail.
write_rows()
write_listing()
write_seen()
write_ledger()
return table.concat(replies)
