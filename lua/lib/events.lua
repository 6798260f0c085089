-- Physical events: what one comes to on its row, whenever it comes (see asof.lua).
--
-- books = on_hand - deficit is the latest count plus the units of all that happened after it, or
-- where there was none, the units of all that happened. It depends on which events there were and
-- not on the order in which they came.

local DIRECTIONS = {receive = 1, ['return'] = 1, transfer_in = 1, sale = -1, transfer_out = -1}

-- The field that is not of its form; nil where all is well.
local function wrong_event(kind, quantity)
  if kind == 'count' then
    if not is_integer(quantity, 0, MAX_TOTAL) then return 'quantity' end
  elseif kind == 'adjust' then
    if quantity == 0 or not is_integer(quantity, -MAX_QUANTITY, MAX_QUANTITY) then
      return 'quantity'
    end
  elseif not DIRECTIONS[kind] then
    return 'type'
  elseif not is_integer(quantity, 1, MAX_QUANTITY) then
    return 'quantity'
  end
end

-- Sets the deltas of on_hand and deficit that bring the row's books to `books`.
local function settle_books(event, row, books)
  event.on_hand = math.max(0, books) - row.on_hand
  event.deficit = math.max(0, -books) - row.deficit
  event.too_much = math.abs(books) > MAX_TOTAL
end

-- What an event at `at` (0: now) comes to: when it happened, its units or what it counted, the
-- deltas of on_hand and deficit, `superseded` where a later count has it already, and of a count
-- `later`, the units that came after it. `too_late`: what a count needs to know is not known any
-- more. `too_much`: the row would pass its limit. Nothing is changed yet.
local function weigh(row, past, id, kind, quantity, at)
  local event = {at = at, superseded = false, later = 0, on_hand = 0, deficit = 0}
  local books = row.on_hand - row.deficit
  if kind == 'count' then
    if at == 0 then event.at = undated_count(past) end
    event.counted = quantity
    if not is_newer_count(past, event.at, id) then
      event.superseded = true
      return event
    end
    event.later = units_after(past, event.at)
    event.too_late = event.later == nil
    if not event.too_late then settle_books(event, row, quantity + event.later) end
    return event
  end
  if at == 0 then event.at = undated(past) end
  event.units = quantity * (DIRECTIONS[kind] or 1)
  event.superseded = event.at <= past.counted_at
  if not event.superseded then settle_books(event, row, books + event.units) end
  return event
end

-- Makes what was weighed part of the row's past.
local function take_in(past, event, id)
  if event.superseded then return end
  if event.counted then
    stand_on_count(past, event.at, id)
  else
    add_delta(past, event.at, event.units)
  end
end
