#!lua flags=allow-oom
-- decide: accept that others stand for what was asked for, or decline it.
--
-- Command {id, merchant, actor, {decision, asked}, skus}
--   decision  accepted or declined
--   asked     the SKUs that others stand for; none: all that nothing was decided of yet
--   skus      of the reservation's lines, as the caller knows them
-- Keys     reservation, open index of its location, then the row of each of `skus`, then the queue
--          of each row and, of one with a buyer, what counts for them of each row
-- Returns  {'ok' | 'replayed', ...reservation}  see describe()
--          {'not_found'}, {'lines_changed'}     the second: read the lines anew and call again
--          {'ended', ...reservation}            committed, released or expired before
--          {'decided', ...reservation}          the other way
--          {'invalid', field}                   nothing was proposed of one of them
-- Ledger   decide, detail {decision, asked, lines, missing, extras}
-- What is declined is given back and missing from then on. Where nothing is left, the reservation
-- is released: operation release.
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include endings

local DECLINED, NOTHING_PICKED = 'declined', {}

-- Returns which of `asked` are to be decided now, or nil and the refusal.
local function to_be_decided(reservation, decision, asked)
  local extras = reservation.extras or {}
  local proposed, decided, open = {}, extras.decided or {}, {}
  for _, sku in ipairs(extras.proposed or {}) do proposed[sku] = true end
  if #asked == 0 then
    asked = extras.proposed or {}
    if #asked == 0 then
      for sku in pairs(decided) do asked[#asked + 1] = sku end
      if #asked == 0 then return nil, {'invalid', 'skus'} end
    end
  end
  for _, sku in ipairs(asked) do
    if proposed[sku] then
      open[#open + 1] = sku
    elseif not decided[sku] then
      return nil, {'invalid', 'skus'}
    elseif decided[sku] ~= decision then
      return nil, describe('decided', reservation)
    end
  end
  return open
end

local function still_proposed(proposed, members)
  local open = {}
  for _, sku in ipairs(proposed) do
    if not members[sku] then open[#open + 1] = sku end
  end
  return #open > 0 and open or nil
end

-- Units of each row that stand for what is declined, and how much of each SKU they serve.
local function declined_units(stands_for, members)
  local units, served = {}, {}
  for _, one in ipairs(stands_for) do
    local asked, sku = one[STANDS_ASKED], one[STANDS_SKU]
    if members[asked] and one[STANDS_KIND] == 'substitute' then
      units[sku] = (units[sku] or 0) + one[STANDS_UNITS]
      served[asked] = (served[asked] or 0) + one[STANDS_SERVED]
    end
  end
  return units, served
end

local function lines_less(lines, units)
  local left = {}
  for _, line in ipairs(lines) do
    local quantity = line[2] - (units[line[1]] or 0)
    if quantity > 0 then left[#left + 1] = {line[1], quantity} end
  end
  return left
end

local function missing_more(missing, open, served)
  local more = {}
  for i, line in ipairs(missing) do
    more[i] = {line[1], line[2] + (served[line[1]] or 0)}
    served[line[1]] = nil
  end
  for _, sku in ipairs(open) do
    if served[sku] then more[#more + 1] = {sku, served[sku]} end
  end
  return more
end

-- Has the lines that are left alone count in a pool, or for the buyer.
local function count_lines(extras, lines)
  local pooled, capped, claimed, held = {}, {}, {}, {}
  for _, line in ipairs(lines) do held[line[1]] = true end
  for _, sku in ipairs(extras.pooled or {}) do
    if held[sku] then pooled[#pooled + 1] = sku end
  end
  for sku, window_ms in pairs(extras.capped or {}) do
    if held[sku] then capped[sku] = window_ms end
  end
  for sku, window_ms in pairs(extras.claimed or {}) do
    if held[sku] then claimed[sku] = window_ms end
  end
  extras.pooled = #pooled > 0 and pooled or nil
  extras.capped = next(capped) and capped or nil
  extras.claimed = next(claimed) and claimed or nil
end

-- The extras with the decisions in them, and with what a retry of the reserve is to be told.
local function decided_extras(reservation, decision, members, lines)
  local extras, changed = reservation.extras, {}
  for name, value in pairs(extras) do changed[name] = value end
  changed.first = first_told(reservation)
  changed.proposed = still_proposed(extras.proposed, members)
  changed.decided = {}
  for sku, earlier in pairs(extras.decided or {}) do changed.decided[sku] = earlier end
  for sku in pairs(members) do changed.decided[sku] = decision end
  if decision == DECLINED then
    local kept = {}
    for _, one in ipairs(extras.stands_for) do
      if not members[one[STANDS_ASKED]] or one[STANDS_KIND] ~= 'substitute' then
        kept[#kept + 1] = one
      end
    end
    changed.stands_for = #kept > 0 and kept or nil
    count_lines(changed, lines)
  end
  return changed
end

-- Substitutes are on the shelf, so what is given back was reserved and waited for nothing.
local function give_back(reservation, id, units, row_keys, pledge_keys)
  local changes = {}
  for _, line in ipairs(reservation.body[BODY_LINES]) do
    local sku, declined = line[1], units[line[1]]
    if declined then
      local row = row_at(row_keys[sku])
      count_less(reservation, id, row, sku, declined, line[2] - declined, false, pledge_keys[sku])
      changes[#changes + 1] = change_row(row, sku, 0, -declined, 0, 0)
    end
  end
  return changes
end

local replies = each_command(function(first, last, id, merchant, actor, decided, skus)
  local decision, asked = decided[1], decided[2]
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local open, refused = to_be_decided(reservation, decision, asked)
  if not open then return refused end
  if #open == 0 then return describe('replayed', reservation) end
  if not is_live(reservation) then return describe('ended', reservation) end
  local row_keys = declared_rows(reservation, skus, first + 2)
  local pledge_keys = declared_pledges(reservation, skus, first + 2 + #skus, last)
  if not row_keys or not pledge_keys then return {'lines_changed'} end

  local members, body = {}, reservation.body
  for _, sku in ipairs(open) do members[sku] = true end
  local units, served = {}, {}
  if decision == DECLINED then
    units, served = declined_units(reservation.extras.stands_for, members)
  end
  local lines = lines_less(body[BODY_LINES], units)
  if #lines == 0 then
    local state, expires_at = reservation.state, reservation.expires_at
    local changes = settle_rows(reservation, id, row_keys, pledge_keys, NOTHING_PICKED)
    end_reservation(reservation, id, 'released', KEYS[first + 1])
    record('release', id, merchant, body[BODY_LOCATION], actor, '', changes,
      {state, expires_at, 'proposal declined', stands_for(reservation)})
    return describe('ok', reservation)
  end
  local changes = give_back(reservation, id, units, row_keys, pledge_keys)
  local missing = missing_more(body[BODY_MISSING], open, served)
  local extras = decided_extras(reservation, decision, members, lines)
  remake_reservation(reservation, id, lines, missing, extras)
  record('decide', id, merchant, body[BODY_LOCATION], actor, '', changes,
    {decision, open, lines, missing, extras})
  return describe('ok', reservation)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
