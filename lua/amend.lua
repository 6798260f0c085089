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
--          {'on_terms'}                   it was promised on terms, or a row that it would have more
--            of has some
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

-- What is remembered of the answer: {'ok', expires_at, confirmed_at, sku, units, sku, units, ...}.
local ANSWERED_LINES = 4

-- A replay tells of the reservation as the first answer did, whatever became of it since.
local function describe_amended(code, reservation, expires_at, confirmed_at, lines)
  local state, order_ref = 'held', ''
  if confirmed_at > 0 then state, order_ref = 'confirmed', reservation.order_ref end
  return array_of(8) .. cmsgpack.pack(code, state, expires_at, confirmed_at, 0, order_ref)
    .. array_of(0) .. body_with(reservation, lines)
end

local function describe_earlier(reservation, earlier)
  local lines = appended_lines(earlier, ANSWERED_LINES)
  return describe_amended('replayed', reservation, earlier[2], earlier[3], lines)
end

-- Returns how many units of each SKU are wanted, or nil and the field that is off.
local function wanted_units(wanted)
  local units = {}
  for _, line in ipairs(wanted) do
    local sku, quantity = line[1], line[2]
    if not is_text(sku) or units[sku] then return nil, 'lines.sku' end
    if not is_integer(quantity, 0, MAX_QUANTITY) then return nil, 'lines.quantity' end
    units[sku] = quantity
  end
  if #wanted == 0 then return nil, 'lines' end
  return units
end

-- Returns the lines as they will be, in their order, and how many units each SKU has now.
local function amended_lines(reservation, wanted, units)
  local lines, held = {}, {}
  for _, line in ipairs(reservation.body[BODY_LINES]) do
    local sku = line[1]
    held[sku] = line[2]
    local quantity = units[sku] or line[2]
    if quantity > 0 then lines[#lines + 1] = {sku, quantity} end
  end
  for _, line in ipairs(wanted) do
    if not held[line[1]] and line[2] > 0 then lines[#lines + 1] = {line[1], line[2]} end
  end
  return lines, held
end

-- The lines that need more than what is free and what they hold already; and of those what is missing
-- of rows that may have it in another partition.
local function short_lines(first, wanted, held)
  local short, elsewhere = {}, {}
  for i, line in ipairs(wanted) do
    local sku, quantity = line[1], line[2]
    local row, own = row_at(KEYS[first + 1 + i]), held[sku] or 0
    if quantity > own and quantity - own > available(row) then
      short[#short + 1] = {sku, quantity, own + available(row), row.exists}
      if row.is_part or not row.parts_are_closed then
        elsewhere[#elsewhere + 1] = {sku, quantity - own}
      end
    end
  end
  return short, elsewhere
end

-- Whether more is wanted of a row that is promised on terms.
local function needs_terms(first, wanted, held)
  for i, line in ipairs(wanted) do
    if line[2] > (held[line[1]] or 0) and row_at(KEYS[first + 1 + i]).terms then return true end
  end
  return false
end

local replies = each_command(function(first, _, id, merchant, actor, fingerprint, operation, wanted,
    most_lines, reclaimed)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local earlier = seen_reply(KEYS[first + 1], fingerprint)
  if earlier and earlier[1] == 'replayed' then return describe_earlier(reservation, earlier) end
  if earlier then return earlier end
  if not is_live(reservation) then return describe('ended', reservation) end
  if reservation.extras then return {'on_terms'} end
  local units, field = wanted_units(wanted)
  if not units then return {'invalid', field} end
  local lines, held = amended_lines(reservation, wanted, units)
  if #lines == 0 then return {'invalid', 'lines'} end
  if #lines > most_lines then return {'limit_exceeded', 'lines', most_lines} end
  if needs_terms(first, wanted, held) then return {'on_terms'} end
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
  record('amend', id, merchant, reservation.body[BODY_LOCATION], actor, fingerprint, changes,
    {operation, lines, reservation.state, reservation.expires_at})
  remember(KEYS[first + 1], fingerprint,
    append_lines({'ok', reservation.expires_at, reservation.confirmed_at}, lines))
  return describe_amended('ok', reservation, reservation.expires_at, reservation.confirmed_at,
    lines)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_seen()
write_ledger()
return table.concat(replies)
