-- Pledges: what a promise that was made on a row's terms holds beside reserved units.
--
-- Its units that there is nothing on the shelf for yet wait in the row's queue, by the days of their
-- turns (see supplies.lua) and then in the order in which they were promised, and count as the row's
-- backordered. Field `waiting` of the reservation: msgpack {sku = {units, place, day, dated, late}},
-- only there while units wait. place is the row's version when they were promised; day is '' where
-- they have none. late is '' unless the day by which they were promised cannot be kept: then it is
-- the day on which they are expected now, or 'later' where nobody can say. Queue of a row: sorted set
-- of reservation ids by turn_of().
--
-- Units of a row with channels count as `held` in the pool of the channel, until they end.
--
-- Units of a row with a cap a buyer count for the buyer: while they are promised, and those that
-- were picked for window_ms more. String of msgpack {reservation = {units, until}}, until is 0 while
-- they are promised; it goes by itself once nothing in it counts.
--
-- extras of a reservation's body, a map; all but the first are only there where they apply:
--   channel      through which the units were promised
--   backordered  {sku = units} that were promised with nothing on the shelf for them
--   expected     {sku = day} by which these were promised
--   behind       {sku = day} whose dated units are served before these, which have no day
--   pooled       {sku, ...} that count in the channel's pool
--   buyer        digest of who they were promised to
--   capped       {sku = window_ms} that count for the buyer
--   claimed      {sku = window_ms} that count for them over all locations, see claims.lua
--   stands_for   {{asked, sku, units, served, of, for, kind}, ...}: units that are held for units
--                of another SKU, whether as a substitute or as a component of a kit
--   proposed     SKUs whose substitutes somebody has to accept first
--   decided      {sku = 'accepted' or 'declined'}
--   first        {missing, stands_for, proposed, channel, buyer} as they were before anything was
--                decided or amended

-- @include supplies

local WAIT_UNITS, WAIT_PLACE, WAIT_DAY, WAIT_DATED, WAIT_LATE = 1, 2, 3, 4, 5

-- Of each queue the place that a reservation has in it from now on; false where it leaves it.
local places = {}
local counts, touched_counts = {}, {}

-- The day of an entry's turn, or nil where it has none.
local function day_of(entry)
  local day = entry[WAIT_DAY] or ''
  return day ~= '' and day or nil
end

-- Where units that wait stand in their row's queue; engine/outlook.py is the twin. Half a day behind
-- those who were promised it stand those who have none. 17 bits for the days of a century and 36 for
-- the place are exact in a score.
local function turn_of(entry)
  local day = day_of(entry)
  if not day then return entry[WAIT_PLACE] end
  local rank = (tonumber(string.sub(day, 1, 4)) - 2000) * 512
    + tonumber(string.sub(day, 6, 7)) * 32 + tonumber(string.sub(day, 9, 10))
  return (rank * 2 + (entry[WAIT_DATED] and 0 or 1)) * 68719476736 + entry[WAIT_PLACE]
end

-- Has so many units more, or fewer, wait for the turn of an entry. It is to be called before the line
-- of the row is made, which tells its terms.
local function count_waits(row, entry, units)
  local day = day_of(entry)
  if not day or not row.terms then return end
  local terms = copied(row.terms)
  local waits, before = copied(terms.waits), terms.waits and terms.waits[day] or {0, 0}
  local dated, undated = before[1], before[2]
  if entry[WAIT_DATED] then dated = dated + units else undated = undated + units end
  waits[day] = (dated > 0 or undated > 0) and {dated, undated} or nil
  terms.waits = next(waits) and waits or nil
  if (entry[WAIT_LATE] or '') ~= '' then
    local late = (terms.late or 0) + units
    terms.late = late > 0 and late or nil
  end
  row.terms, row.changes_terms = terms, true
  end_empty_terms(row)
end

local function set_place(queue_key, id, place)
  need_sorted_set(queue_key)
  places[queue_key] = places[queue_key] or {}
  places[queue_key][id] = place
end

-- Has `id` wait in a row's queue.
local function wait_in_queue(queue_key, id, entry)
  set_place(queue_key, id, integer(turn_of(entry)))
end

-- Takes a reservation out of a row's queue. Returns the units that it still waited for.
local function stop_waiting(reservation, id, row, sku, queue_key)
  local entry = reservation.waiting[sku]
  if not entry then return 0 end
  set_place(queue_key, id, false)
  count_waits(row, entry, -entry[WAIT_UNITS])
  reservation.waiting[sku] = nil
  return entry[WAIT_UNITS]
end

-- Has a reservation wait for fewer units of a row, at its place in the queue.
local function wait_less(reservation, id, row, sku, units, queue_key)
  local entry = reservation.waiting[sku]
  if units == entry[WAIT_UNITS] then
    stop_waiting(reservation, id, row, sku, queue_key)
  else
    count_waits(row, entry, -units)
    entry[WAIT_UNITS] = entry[WAIT_UNITS] - units
  end
end

-- True where what a reservation has of a row counts in its channel's pool.
local function is_pooled(extras, sku)
  for _, pooled in ipairs(extras and extras.pooled or {}) do
    if pooled == sku then return true end
  end
  return false
end

-- Units that the pools of a row are guaranteed and do not hold yet: of all channels but this one, and
-- of this one.
local function unmet_minimums(terms, channel)
  local of_others, own = 0, 0
  for name, pool in pairs(terms.channels or {}) do
    local unmet = math.max(0, (pool.minimum or 0) - pool.held)
    if name == channel then own = unmet else of_others = of_others + unmet end
  end
  return of_others, own
end

-- Has units of a row count in a channel's pool, or no longer. A pool that was ended stays as long
-- as it counts anything.
local function count_in_pool(row, channel, units)
  local pool = row.terms and row.terms.channels and row.terms.channels[channel]
  if not pool then return end
  pool.held = pool.held + units
  if pool.held == 0 and not pool.cap and not pool.minimum then
    row.terms.channels[channel] = nil
    if not next(row.terms.channels) then row.terms.channels = nil end
    end_empty_terms(row)
  end
  row.changes_terms = true
end

-- What counts for a buyer of a row.
local function count_of(key)
  local count = counts[key]
  if count then return count end
  local text = redis.call('GET', key)
  count = {key = key, entries = text and cmsgpack.unpack(text) or {}}
  for id, entry in pairs(count.entries) do
    if entry[2] > 0 and entry[2] <= now then count.entries[id] = nil end
  end
  counts[key] = count
  return count
end

local function units_of_buyer(count)
  local sum = 0
  for _, entry in pairs(count.entries) do sum = sum + entry[1] end
  return sum
end

-- Has `units` of a reservation count until a moment (0: as long as they are promised); 0 for none.
local function count_for_buyer(count, id, units, until_ms)
  count.entries[id] = units > 0 and {units, until_ms} or nil
  if not count.touched then
    count.touched = true
    touched_counts[#touched_counts + 1] = count
  end
end

-- Has a line count for `quantity` units less in its channel's pool. For its buyer, `left` go on to
-- count: as long as they are promised, or once that is over, for the window of the cap.
local function count_less(reservation, id, row, sku, quantity, left, is_over, keys)
  local extras = reservation.extras
  if is_pooled(extras, sku) then count_in_pool(row, extras.channel, -quantity) end
  local window_ms = extras.capped and extras.capped[sku]
  if window_ms then
    count_for_buyer(count_of(keys[2]), id, left, is_over and now + window_ms or 0)
  end
end

local function write_count(count)
  local latest, lasts = 0, false
  for _, entry in pairs(count.entries) do
    lasts = lasts or entry[2] == 0
    latest = math.max(latest, entry[2])
  end
  write_counting(count.key, count.entries, lasts and 0 or latest)
end

local function write_pledges()
  write_members(places)
  for _, count in ipairs(touched_counts) do write_count(count) end
end
