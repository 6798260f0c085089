-- Supplies: units that are expected at a row on a day, and what may be promised of them by then.
--
-- A day is text, YYYY-MM-DD, so days are in the order of their texts. They are compared with each
-- other, never with a clock. In the row's terms, each only where there is something to say:
--   supplies  {ref = {day, units}}: units that are still to come
--   waits     {day = {dated, undated}}: units that wait, by the day that says when it is their turn.
--             Dated ones were promised by that day. Undated ones were promised beyond all supplies:
--             they come after all that were dated up to that day, which was the last one that the row
--             had. Units that were promised while it had none are in neither: it is their turn first
--   late      dated units whose day cannot be kept any more, as far as it is on record

local SUPPLY_DAY, SUPPLY_UNITS = 1, 2

local function copied(map)
  local copy = {}
  for name, value in pairs(map or {}) do copy[name] = value end
  return copy
end

-- Ends a row's terms where nothing is left of them.
local function end_empty_terms(row)
  if row.terms and not next(row.terms) then row.terms = nil end
end

-- Units that come on each day, and all of them.
local function coming(terms)
  local by_day, all = {}, 0
  for _, supply in pairs(terms.supplies or {}) do
    local day, units = supply[SUPPLY_DAY], supply[SUPPLY_UNITS]
    by_day[day], all = (by_day[day] or 0) + units, all + units
  end
  return by_day, all
end

-- The days on which something comes or somebody's turn is, in order.
local function days_of(terms)
  local days, by_day = {}, coming(terms)
  for day in pairs(by_day) do days[#days + 1] = day end
  for day in pairs(terms.waits or {}) do
    if not by_day[day] then days[#days + 1] = day end
  end
  table.sort(days)
  return days
end

-- Units that wait and were promised by a day.
local function dated_waits(terms)
  local units = 0
  for _, waits in pairs(terms.waits or {}) do units = units + waits[1] end
  return units
end

-- Units that may be promised beyond `taken` ones of the shelf, by each day on which supplies come:
-- {{day, units}, ...}, in order. What is promised by a day must leave enough on every later one for
-- those who wait already: cumulative available-to-promise with look-ahead. engine/outlook.py is the
-- twin, which takes what pools are guaranteed off for whoever has none.
local function promisable(row, taken)
  local terms = row.terms
  local by_day, waits = coming(terms), terms.waits or {}
  local days, free = days_of(terms), {}
  -- What arrives pays a deficit first.
  local left = unreserved(row) - row.deficit - row.backordered
  for _, units in pairs(waits) do left = left + units[1] + units[2] end
  for i, day in ipairs(days) do
    local units = waits[day] or {0, 0}
    left = left + (by_day[day] or 0) - units[1] - units[2]
    free[i] = left
  end
  local found, least = {}, math.huge
  for i = #days, 1, -1 do
    least = math.min(least, free[i])
    if by_day[days[i]] then
      table.insert(found, 1, {days[i], math.max(0, least - taken)})
    end
  end
  return found
end

-- Units that were promised beyond the shelf and all that is to come.
local function beyond_supplies(row)
  local _, all = coming(row.terms)
  local short = math.min(0, unreserved(row) - row.deficit)
  return math.max(0, row.backordered - math.max(0, all + short))
end
