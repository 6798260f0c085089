-- Room: how many units of a row may be promised to whoever asks, and the taking of them.
-- @include pledges

-- Units on the shelf that a channel may be promised: what the others' pools are guaranteed and do
-- not hold yet is left for them. Where the shelf has fewer than all guarantees together, those who
-- have one are served as they come; only what was promised by a day goes before. The second is how
-- many of the units there are left for others.
local function shelf_of_channel(row, channel)
  local of_others, own = unmet_minimums(row.terms, channel)
  local there = math.max(0, unreserved(row))
  own = math.min(own, math.max(0, there - dated_waits(row.terms)))
  return math.max(0, available(row) - of_others, own), math.min(of_others, there)
end

-- Units that an asker may be promised before they come, and of a row with supplies how many by which
-- days. Who names a day gets what will have come by then. Who names none is promised such units only
-- of a row that takes backorders, and there beyond what is expected, too. `taken` units of the shelf
-- are not there for it.
local function room_to_come(row, ask, taken)
  local terms = row.terms
  local days, most, limit = {}, 0, terms.backorder_limit or 0
  if ask.by == nil and limit == 0 then return 0, days end
  if terms.supplies then days = promisable(row, taken) end
  for _, one in ipairs(days) do
    if ask.by == nil or one[1] <= ask.by then most = one[2] end
  end
  if ask.by == nil then most = most + math.max(0, limit - beyond_supplies(row)) end
  return most, days
end

-- Whether a row's cap a buyer is one over all locations of the merchant, so that its units have to be
-- claimed before they are promised (see claims.lua), and how many the asker has claimed: nil where
-- they bring no claim that goes for it.
local function claim_of(row, ask)
  local cap = row.terms and row.terms.buyer_cap
  if not cap or cap.scope ~= 'merchant' then return false end
  local claim = ask.claims and ask.claims[row.key]
  if claim and now <= ask.lapses_at and claim[2] == cap.units and claim[3] == cap.window_ms then
    return true, claim[1]
  end
  return true
end

-- The answer where units have to be claimed first; nil where that was done. It names all rows of the
-- command that need it, with their caps.
local function unclaimed(lines, ask)
  local capped, is_missing = {}, false
  for _, line in ipairs(lines) do
    local is_capped, units = claim_of(line.row, ask)
    if is_capped and ask.buyer ~= '' then
      local cap = line.row.terms.buyer_cap
      capped[#capped + 1] = {line.sku, cap.units, cap.window_ms}
      is_missing = is_missing or not units
    end
  end
  if not is_missing then return nil end
  return {'unclaimed', now, capped}
end

-- What there is of a row for an asker: `most` units, of which `shelf` are on the shelf and the rest
-- are promised before they come: `days` says by when. `limited_by` is what there is not more for:
-- 'stock', 'channel' or 'buyer'.
--   ask.promise  'stock': nothing that is not on the shelf; '': whatever the row's terms allow
--   ask.by       the day by which all of it must have come, or missing
--   ask.channel  through which the units are asked for
--   ask.buyer    digest of who asks, or ''; count_key is what counts for them
--   ask.claims   {row's key = {units, cap, window_ms}} that are claimed until ask.lapses_at, those
--                included that the asker has and that stay: `stays` of them, none where it is missing
local function room_of(row, ask, count_key, stays)
  local room = {shelf = available(row), limited_by = 'stock'}
  local terms = row.terms
  local own = terms and terms.channels and terms.channels[ask.channel]
  local taken = room.shelf
  if terms and terms.channels then
    local shelf, left = shelf_of_channel(row, ask.channel)
    if shelf < room.shelf then room.limited_by = 'channel' end
    room.shelf, taken = shelf, math.max(taken, shelf, left)
  end
  room.most = room.shelf
  if terms and ask.promise ~= 'stock' then
    local to_come
    to_come, room.days = room_to_come(row, ask, taken)
    room.taken = taken
    room.most = room.most + to_come
  end
  if own and own.cap and own.cap - own.held < room.most then
    room.most, room.limited_by = math.max(0, own.cap - own.held), 'channel'
  end
  if terms and terms.buyer_cap then
    local is_claimed, units = claim_of(row, ask)
    if is_claimed then
      units, room.is_claimed = math.max(0, (units or 0) - (stays or 0)), true
    else
      room.count = count_of(count_key)
      units = math.max(0, terms.buyer_cap.units - units_of_buyer(room.count))
    end
    if units < room.most then room.most, room.limited_by = units, 'buyer' end
  end
  room.shelf = math.min(room.shelf, room.most)
  return room
end

-- The same for who has units of the row already: those that are `freed` count as free. So there is
-- always room for them. Where a row has a cap a buyer and nobody is named there is room for no more.
--   own  {id, units, waiting, wait, freed, freed_waiting, is_pooled}: what the reservation has of the
--        row, how many of these it waits for and how, how many are freed and how many of these it
--        waits for, and whether they count in the channel's pool
-- What was promised by a day is promised more by that day alone; of what has a day and stays in part
-- nothing more is promised before it comes, or it would be served at two turns.
local function room_beside(row, ask, count_key, own)
  local waits = own.freed_waiting
  local shelf, stays = own.freed - waits, own.units - own.freed
  local terms = row.terms
  local pool = terms and terms.channels and terms.channels[ask.channel]
  if terms and terms.buyer_cap and ask.buyer == '' then
    return {shelf = shelf, most = own.freed, limited_by = 'buyer', needs_buyer = true}
  end
  local is_counted = terms and terms.buyer_cap and not claim_of(row, ask)
  local count = is_counted and count_of(count_key)
  local held, entry = pool and pool.held, count and count.entries[own.id]
  row.reserved, row.backordered = row.reserved - shelf, row.backordered - waits
  -- More of a line counts with all of it, whether it did before or not.
  if pool then pool.held = held - (own.is_pooled and own.units or 0) + stays end
  if count then count.entries[own.id] = stays > 0 and {stays, 0} or nil end
  local changes_terms = row.changes_terms
  if own.wait and day_of(own.wait) then
    ask = copied(ask)
    if own.wait[WAIT_DATED] then ask.by = own.wait[WAIT_DAY] end
    if waits < own.waiting then ask.promise = 'stock' end
    count_waits(row, own.wait, -waits)
  end
  local room = room_of(row, ask, count_key, stays)
  row.terms, row.changes_terms = terms, changes_terms
  row.reserved, row.backordered = row.reserved + shelf, row.backordered + waits
  if pool then pool.held = held end
  if count then count.entries[own.id] = entry end
  -- What it keeps on the shelf is not to come as well.
  for _, one in ipairs(room.days or {}) do
    one[2] = math.max(0, one[2] - math.max(0, shelf - room.taken))
  end
  room.shelf, room.most = math.max(room.shelf, shelf), math.max(room.most, own.freed)
  return room
end

-- What a promise takes beside reserved units; see pledges.lua.
local function new_pledge(id, ask)
  return {id = id, extras = {channel = ask.channel}, waiting = {}, buyer = ask.buyer}
end

-- Notes units of a SKU among the extras of a pledge.
local function note(pledge, name, sku, value)
  pledge.extras[name] = pledge.extras[name] or {}
  pledge.extras[name][sku] = value
end

-- How units wait that are promised before they come: by the first day on which there are enough, or
-- behind all who have one. `place` is the row's version once they are promised.
local function new_wait(row, room, units, place)
  for _, one in ipairs(room.days or {}) do
    if one[2] >= units then return {units, place, one[1], true, ''} end
  end
  local days = days_of(row.terms)
  return {units, place, days[#days] or '', false, ''}
end

-- Takes units of a row, no more than there is room for. Returns the ledger's line.
local function take_room(pledge, row, sku, units, room, queue_key)
  local shelf = math.min(units, room.shelf)
  local unfilled = units - shelf
  pledge.has_extras = pledge.has_extras or row.terms ~= nil
  local channels = row.terms and row.terms.channels
  if channels and channels[pledge.extras.channel] then
    count_in_pool(row, pledge.extras.channel, units)
    local pooled = pledge.extras.pooled or {}
    pooled[#pooled + 1] = sku
    pledge.extras.pooled = pooled
  end
  if room.count or room.is_claimed then
    if room.count then count_for_buyer(room.count, pledge.id, units, 0) end
    pledge.extras.buyer = pledge.buyer
    local window_ms = row.terms.buyer_cap.window_ms
    note(pledge, room.is_claimed and 'claimed' or 'capped', sku, window_ms)
  end
  if unfilled > 0 then
    local entry = new_wait(row, room, unfilled, row.version + 1)
    count_waits(row, entry, unfilled)
    wait_in_queue(queue_key, pledge.id, entry)
    pledge.waiting[sku] = entry
    note(pledge, 'backordered', sku, unfilled)
    if day_of(entry) then
      note(pledge, entry[WAIT_DATED] and 'expected' or 'behind', sku, entry[WAIT_DAY])
    end
  end
  return change_row(row, sku, 0, shelf, 0, 0, nil, nil, unfilled > 0 and unfilled or nil)
end

-- The refusal, which says so where nothing but the buyer's cap is in the way.
local function refused_for_units(due, short)
  for _, line in ipairs(short) do
    if line[5] ~= 'buyer' then return {'insufficient_stock', due, short} end
  end
  if #short == 0 then return {'insufficient_stock', due, short} end
  return {'buyer_cap_exceeded', due, short}
end
