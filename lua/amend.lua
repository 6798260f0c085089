#!lua
-- amend: hold another quantity of some lines of a reservation, more or fewer. Its own units count
-- as free for it, so a shopper is never in their own way.
--
-- Command {id, merchant, actor, fingerprint, operation id, wanted, most_lines, reclaimed}
--   wanted      {{sku, quantity}, ...}, each SKU once: how many units are held from now on; 0 drops
--               the line, a SKU that has none gets one
--   most_lines  lines that a reservation may have
--   reclaimed   true: due holds were taken back just now, so do not refuse in hope of more
-- Keys     reservation, idempotency record, then the row of each of `wanted`
-- Returns  {'ok' | 'replayed', ...reservation}  as it was just after; see describe()
--          {'not_found'}, {'key_reused'}
--          {'ended', ...reservation}      committed, released or expired before
--          {'insufficient_stock', due, {{sku, requested, available, known}, ...}}
--            every line that does not fit, its own units among the available ones; due is true
--            where a reclaim may help
--          {'terms', sku}                 more is wanted of a row that has terms: `repromise` is for
--            that
--          {'lines_changed'}              so it is for what was promised on terms, or stands for
--            something: read the reservation anew
--          {'split', {{sku, units}, ...}}  so many must be free here first, of rows that have units
--            elsewhere; not once due holds were taken back
--          {'limit_exceeded', 'lines', most_lines}
--          {'invalid', field}             also where no line would be left: release it instead
-- Ledger   amend, detail {operation id, lines, state, expires_at}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include seen
-- @include amending

-- The lines that need more than what is free and what they hold already; and of those what is missing
-- of rows that may have it in another partition.
local function short_lines(first, wanted, held)
  local short, elsewhere = {}, {}
  for i, line in ipairs(wanted) do
    local sku, quantity = line[1], line[2]
    local row, own = row_at(KEYS[first + 1 + i]), held[sku] or 0
    if quantity > own and quantity - own > available(row) then
      short[#short + 1] = {sku, quantity, own + available(row), row.exists}
      if row.spread.is_part or not row.spread.parts_are_closed then
        elsewhere[#elsewhere + 1] = {sku, quantity - own}
      end
    end
  end
  return short, elsewhere
end

-- The SKU of a row with terms that more is wanted of.
local function row_on_terms(first, wanted, held)
  for i, line in ipairs(wanted) do
    local sku = line[1]
    if line[2] > (held[sku] or 0) and row_at(KEYS[first + 1 + i]).terms then return sku end
  end
end

local function skus_of(wanted)
  local skus = {}
  for i, line in ipairs(wanted) do skus[i] = line[1] end
  return skus
end

local replies = each_command(function(first, _, id, merchant, actor, fingerprint, operation, wanted,
    most_lines, reclaimed)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local earlier = seen_reply(KEYS[first + 1], fingerprint)
  if earlier and earlier[1] == 'replayed' then return describe_earlier(reservation, earlier) end
  if earlier then return earlier end
  if not is_live(reservation) then return describe('ended', reservation) end
  if reservation.extras then return {'lines_changed'} end
  local units, field = wanted_units(wanted)
  if not units then return {'invalid', field} end
  local held = units_held(reservation)
  local lines = amended_lines(reservation, held, skus_of(wanted), units)
  if #lines == 0 then return {'invalid', 'lines'} end
  if #lines > most_lines then return {'limit_exceeded', 'lines', most_lines} end
  local sku_on_terms = row_on_terms(first, wanted, held)
  if sku_on_terms then return {'terms', sku_on_terms} end
  local short, elsewhere = short_lines(first, wanted, held)
  if #elsewhere > 0 and not reclaimed then return {'split', elsewhere} end
  if #short > 0 then return {'insufficient_stock', holds_are_due(reclaimed), short} end

  local changes = {}
  for i, line in ipairs(wanted) do
    local change = line[2] - (held[line[1]] or 0)
    if change ~= 0 then
      changes[#changes + 1] = change_row(row_at(KEYS[first + 1 + i]), line[1], 0, change, 0, 0)
    end
  end
  amend_reservation(reservation, id, lines)
  return record_amendment(reservation, id, actor, fingerprint, operation, KEYS[first + 1], changes)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_seen()
write_ledger()
return table.concat(replies)
