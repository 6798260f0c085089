-- Room: how many units of a row may be promised to whoever asks, and the taking of them.
-- @include pledges

-- Units on the shelf that a channel may be promised: what the others' pools are guaranteed and do
-- not hold yet is left for them. Where the shelf has fewer than all guarantees together, those who
-- have one are served as they come.
local function shelf_of_channel(row, channel)
  local shelf, left_for_others, own = available(row), 0, 0
  for name, pool in pairs(row.terms.channels) do
    local unmet = math.max(0, (pool.minimum or 0) - pool.held)
    if name == channel then own = unmet else left_for_others = left_for_others + unmet end
  end
  return math.max(0, shelf - left_for_others, math.min(own, shelf))
end

-- What there is of a row for an asker: `most` units, of which `shelf` are on the shelf and the rest
-- are promised before they come. `limited_by` is what there is not more for: 'stock', 'channel' or
-- 'buyer'.
--   ask.promise  'stock': nothing that is not on the shelf; '': whatever the row's terms allow
--   ask.channel  through which the units are asked for
--   ask.buyer    digest of who asks, or ''; count_key is what counts for them
local function room_of(row, ask, count_key)
  local room = {shelf = available(row), limited_by = 'stock'}
  local terms = row.terms
  local own = terms and terms.channels and terms.channels[ask.channel]
  if terms and terms.channels then
    local shelf = shelf_of_channel(row, ask.channel)
    if shelf < room.shelf then room.shelf, room.limited_by = shelf, 'channel' end
  end
  room.most = room.shelf
  if terms and ask.promise ~= 'stock' then
    room.most = room.most + math.max(0, (terms.backorder_limit or 0) - row.backordered)
  end
  if own and own.cap and own.cap - own.held < room.most then
    room.most, room.limited_by = math.max(0, own.cap - own.held), 'channel'
  end
  if terms and terms.buyer_cap then
    room.count = count_of(count_key)
    local units = math.max(0, terms.buyer_cap.units - units_of_buyer(room.count))
    if units < room.most then room.most, room.limited_by = units, 'buyer' end
  end
  room.shelf = math.min(room.shelf, room.most)
  return room
end

-- The same for who has units of the row already: those that are `freed` count as free. So there is
-- always room for them. Where a row has a cap a buyer and nobody is named there is room for no more.
--   own  {id, units, waiting, freed, is_pooled}: what the reservation has of the row, how many of
--        these it waits for, how many are freed, and whether they count in the channel's pool
local function room_beside(row, ask, count_key, own)
  local waits = math.min(own.waiting, own.freed)
  local shelf, stays = own.freed - waits, own.units - own.freed
  local terms = row.terms
  local pool = terms and terms.channels and terms.channels[ask.channel]
  local count = terms and terms.buyer_cap and ask.buyer ~= '' and count_of(count_key)
  if terms and terms.buyer_cap and not count then
    return {shelf = shelf, most = own.freed, limited_by = 'buyer', needs_buyer = true}
  end
  local held, entry = pool and pool.held, count and count.entries[own.id]
  row.reserved, row.backordered = row.reserved - shelf, row.backordered - waits
  -- More of a line counts with all of it, whether it did before or not.
  if pool then pool.held = held - (own.is_pooled and own.units or 0) + stays end
  if count then count.entries[own.id] = stays > 0 and {stays, 0} or nil end
  local room = room_of(row, ask, count_key)
  row.reserved, row.backordered = row.reserved + shelf, row.backordered + waits
  if pool then pool.held = held end
  if count then count.entries[own.id] = entry end
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
  if room.count then
    count_for_buyer(room.count, pledge.id, units, 0)
    pledge.extras.buyer = pledge.buyer
    note(pledge, 'capped', sku, row.terms.buyer_cap.window_ms)
  end
  local line = change_row(row, sku, 0, shelf, 0, 0, nil, nil, unfilled > 0 and unfilled or nil)
  if unfilled > 0 then
    wait_in_queue(queue_key, pledge.id, row)
    pledge.waiting[sku] = {unfilled, row.version}
    note(pledge, 'backordered', sku, unfilled)
  end
  return line
end

-- The refusal, which says so where nothing but the buyer's cap is in the way.
local function refused_for_units(due, short)
  for _, line in ipairs(short) do
    if line[5] ~= 'buyer' then return {'insufficient_stock', due, short} end
  end
  if #short == 0 then return {'insufficient_stock', due, short} end
  return {'buyer_cap_exceeded', due, short}
end
