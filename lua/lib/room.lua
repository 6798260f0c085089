-- Room: how many units of a row may be promised to whoever asks, and the taking of them.
-- @include pledges

-- What there is of a row for an asker: `most` units, of which `shelf` are on the shelf and the rest
-- are promised before they come.
--   ask.promise  'stock': nothing that is not on the shelf; '': whatever the row's terms allow
--   ask.channel  through which the units are asked for
local function room_of(row, ask)
  local room = {shelf = available(row)}
  room.most = room.shelf
  if row.terms and ask.promise ~= 'stock' then
    room.most = room.most + math.max(0, (row.terms.backorder_limit or 0) - row.backordered)
  end
  return room
end

-- What a promise takes beside reserved units; see pledges.lua.
local function new_pledge(id, ask)
  return {id = id, extras = {channel = ask.channel}, waiting = {}}
end

-- Takes units of a row, no more than there is room for. Returns the ledger's line.
local function take_room(pledge, row, sku, units, room, queue_key)
  local shelf = math.min(units, room.shelf)
  local unfilled = units - shelf
  local line = change_row(row, sku, 0, shelf, 0, 0, nil, nil, unfilled > 0 and unfilled or nil)
  if unfilled > 0 then
    wait_in_queue(queue_key, pledge.id, row)
    pledge.waiting[sku] = {unfilled, row.version}
    pledge.extras.backordered = pledge.extras.backordered or {}
    pledge.extras.backordered[sku] = unfilled
  end
  return line
end
