-- The ending of a reservation: what it held goes back to its rows, or left the shelf.
-- @include pledges

-- Maps each SKU of the reservation to its row's key. A command declares them as `skus`, whose keys
-- follow from KEYS[first]; nil where the reservation has a line that the command did not declare.
local function declared_rows(reservation, skus, first)
  local row_keys = {}
  for i, sku in ipairs(skus) do
    row_keys[sku] = KEYS[first + i - 1]
  end
  for _, line in ipairs(reservation.body[BODY_LINES]) do
    if not row_keys[line[1]] then return nil end
  end
  return row_keys
end

-- Maps each SKU of a reservation that has pledges to {its row's queue, what counts for its buyer}.
-- They are declared from KEYS[first] to KEYS[last], the queues first; nil where they are not. Of one
-- without pledges nothing is declared.
local function declared_pledges(reservation, skus, first, last)
  local pledge_keys = {}
  if not reservation.extras then return pledge_keys end
  if last - first + 1 ~= #skus * (reservation.extras.buyer and 2 or 1) then return nil end
  for i, sku in ipairs(skus) do
    pledge_keys[sku] = {KEYS[first + i - 1], KEYS[first + #skus + i - 1]}
  end
  return pledge_keys
end

-- Ends the promise of a live reservation's lines: `picked` maps a SKU to the units that left the
-- shelf, the rest goes back. Returns the ledger's lines.
local function settle_rows(reservation, id, row_keys, pledge_keys, picked)
  local lines = {}
  for i, line in ipairs(reservation.body[BODY_LINES]) do
    local sku, quantity = line[1], line[2]
    local row = row_at(row_keys[sku])
    if reservation.extras then
      local units = picked[sku] or 0
      count_less(reservation, id, row, sku, quantity, units, true, pledge_keys[sku])
      local unfilled = stop_waiting(reservation, id, row, sku, pledge_keys[sku][1])
      lines[i] = change_row(row, sku, -units, unfilled - quantity, 0, 0, nil, unfilled > 0 and 0 or nil,
        unfilled > 0 and -unfilled or nil)
    else
      lines[i] = change_row(row, sku, -(picked[sku] or 0), -quantity, 0, 0)
    end
  end
  return lines
end

local function end_reservation(reservation, id, state, open_key)
  reservation.id = id
  reservation.state = state
  reservation.ended_at = now
  reservation.open_key = open_key
  need_sorted_set(open_key)
  touch_reservation(reservation)
end
