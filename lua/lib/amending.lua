-- What the verbs that amend reservations share.

-- What is remembered of the answer is {'ok', expires_at, confirmed_at, ...}, the rest as append_told()
-- has it.
local ANSWERED_TOLD = 4

-- A replay tells of the reservation as the first answer did, whatever became of it since.
local function describe_amended(code, reservation, expires_at, confirmed_at, body, waiting)
  local state, order_ref = 'held', ''
  if confirmed_at > 0 then state, order_ref = 'confirmed', reservation.order_ref end
  return described(waiting, code, state, expires_at, confirmed_at, 0, order_ref)
    .. array_of(0) .. body .. waiting
end

local function describe_earlier(reservation, earlier)
  return describe_amended('replayed', reservation, earlier[2], earlier[3],
    told_earlier(reservation, earlier, ANSWERED_TOLD))
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

-- The units that a reservation has of each SKU.
local function units_held(reservation)
  local held = {}
  for _, line in ipairs(reservation.body[BODY_LINES]) do held[line[1]] = line[2] end
  return held
end

-- Returns the lines as they will be, in their order: `units` says how many there are of some SKUs,
-- of which `skus` has those in the order in which new ones are added.
local function amended_lines(reservation, held, skus, units)
  local lines = {}
  for _, line in ipairs(reservation.body[BODY_LINES]) do
    local quantity = units[line[1]] or line[2]
    if quantity > 0 then lines[#lines + 1] = {line[1], quantity} end
  end
  for _, sku in ipairs(skus) do
    if not held[sku] and units[sku] > 0 then lines[#lines + 1] = {sku, units[sku]} end
  end
  return lines
end

-- Says in the ledger what a reservation was amended to, and remembers the answer, which it returns.
local function record_amendment(reservation, id, actor, fingerprint, operation, seen_key, changes)
  local body, expires_at = reservation.body, reservation.expires_at
  local detail = {operation, body[BODY_LINES], reservation.state, expires_at}
  if reservation.extras then
    detail[5], detail[6] = reservation.extras, reservation.waiting
  end
  record('amend', id, body[BODY_MERCHANT], body[BODY_LOCATION], actor, fingerprint, changes, detail)
  remember(seen_key, fingerprint, append_told({'ok', expires_at, reservation.confirmed_at},
    reservation))
  return describe_amended('ok', reservation, expires_at, reservation.confirmed_at,
    reservation.packed_body, waiting_of(reservation))
end
