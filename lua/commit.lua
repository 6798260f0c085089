#!lua flags=allow-oom
-- commit: the units left the shelf. Fewer than were held may be picked; the rest goes back.
--
-- Command {id, merchant, actor, picks, skus}
--   picks    {{sku, quantity}, ...} for a short pick; {} takes every line whole
--   skus     of the reservation's lines, as the caller knows them
-- Keys     reservation, open index of its location, then the row of each of `skus`, then the recent
--          changes of each row, then of a reservation with extras the queue of each row
--          and, of one with a buyer, what counts for them of each row
-- Returns  {'ok' | 'replayed', ...reservation}  see describe()
--          {'not_found'}, {'lines_changed'}     the second: read the lines anew and call again
--          {'ended', ...reservation}            another ending, or another pick, came first
--          {'proposed', ...reservation}         somebody has to accept its substitutes first
--          {'insufficient_on_hand', {{sku, requested, on_hand, true}, ...}}
--            the shelf has fewer than that: pick short, or book what the shelf really has
--          {'backorder_unfilled', {{sku, requested, filled, true}, ...}}
--            some of the units are still waited for: pick what there is, or commit later
--          {'invalid', field}
-- Ledger   commit, detail {state before, expires_at before, picked, stands_for}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include endings
-- @include asof

-- The units to take of each SKU, and the same as an array in the order of the lines.
local function picked_units(body, picks)
  local held, asked = {}, {}
  for _, line in ipairs(body[BODY_LINES]) do held[line[1]] = line[2] end
  for _, pick in ipairs(picks) do
    local sku, quantity = pick[1], pick[2]
    if not held[sku] or asked[sku] then return nil, 'lines.sku' end
    if not is_integer(quantity, 0, held[sku]) then return nil, 'lines.quantity' end
    asked[sku] = quantity
  end
  local units, ordered = {}, {}
  for i, line in ipairs(body[BODY_LINES]) do
    local quantity = line[2]
    if #picks > 0 then quantity = asked[line[1]] or 0 end
    units[line[1]] = quantity
    ordered[i] = {line[1], quantity}
  end
  return units, ordered
end

-- The picks of units that nothing has come for yet.
local function missing_fills(reservation, units, ordered)
  local unfilled = {}
  if not reservation.extras then return unfilled end
  for i, line in ipairs(reservation.body[BODY_LINES]) do
    local waiting = reservation.waiting[line[1]]
    local filled = line[2] - (waiting and waiting[1] or 0)
    if units[line[1]] > filled then
      unfilled[#unfilled + 1] = {line[1], ordered[i][2], filled, true}
    end
  end
  return unfilled
end

local function missing_on_hand(units, row_keys, ordered)
  local short = {}
  for _, line in ipairs(ordered) do
    local row = row_at(row_keys[line[1]])
    if units[line[1]] > row.on_hand then
      short[#short + 1] = {line[1], units[line[1]], row.on_hand, true}
    end
  end
  return short
end

local replies = each_command(function(first, last, id, merchant, actor, picks, skus)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local units, ordered = picked_units(reservation.body, picks)
  if not units then return {'invalid', ordered} end
  local picked = cmsgpack.pack(ordered)
  if not is_live(reservation) then
    -- A bare commit after a short pick is a retry that does not remember the pick.
    local same = #picks == 0 or picked == reservation.picked
    if reservation.state == 'committed' and same then return describe('replayed', reservation) end
    return describe('ended', reservation)
  end
  if is_proposed(reservation) then return describe('proposed', reservation) end
  local row_keys = declared_rows(reservation, skus, first + 2)
  local pledge_keys = declared_pledges(reservation, skus, first + 2 + 2 * #skus, last)
  if not row_keys or not pledge_keys then return {'lines_changed'} end
  local unfilled = missing_fills(reservation, units, ordered)
  if #unfilled > 0 then return {'backorder_unfilled', unfilled} end
  local short = missing_on_hand(units, row_keys, ordered)
  if #short > 0 then return {'insufficient_on_hand', short} end

  for i, sku in ipairs(skus) do
    local past = past_of(row_at(row_keys[sku]), KEYS[first + 1 + #skus + i])
    add_delta(past, undated(past), -(units[sku] or 0))
  end
  local state, expires_at = reservation.state, reservation.expires_at
  local lines = settle_rows(reservation, id, row_keys, pledge_keys, units)
  reservation.picked = picked
  end_reservation(reservation, id, 'committed', KEYS[first + 1])
  record('commit', id, merchant, reservation.body[BODY_LOCATION], actor, '', lines,
    {state, expires_at, ordered, stands_for(reservation)})
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_rows()
write_pasts()
write_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
