-- Stock rows, each read once a script and written once.

local rows, touched_rows = {}, {}

-- What the column `split` says of a row whose units are spread over partitions; lib/split.lua writes
-- it. Its home has the totals, and what is free at its parts, or on the way, cannot be promised here.
-- A part takes what is promised by the row's plan of the moment, its epoch, while it is open.
local function read_split(row, text)
  row.split = text
  local epoch, open = string.match(text, '^part %d+ (%d+) ([01])')
  if epoch then
    row.is_part, row.epoch, row.is_open = true, tonumber(epoch), open == '1'
    return
  end
  local places, cells
  epoch, open, places, cells = string.match(text, '^home (%d+) ([01]) (%S+) %S+ (%S+)$')
  row.epoch = tonumber(epoch)
  local settled, is_spread = true, places ~= '-'
  for granted, returned, picked, reserved, heard in
    string.gmatch(cells, '%d+:(%d+):%d+:%d+:(%d+):(%d+):(%d+):(%d+)') do
    row.away = row.away + granted - returned - picked - reserved
    settled = settled and math.floor(heard / 2) == row.epoch
    is_spread = is_spread or granted - returned - picked > 0
  end
  row.is_spread = is_spread
  row.is_open = settled and places == '-'
  row.parts_are_closed = settled and open == '0'
end

local function row_at(key)
  local row = rows[key]
  if row then return row end
  local f = redis.call('HMGET', key, 'on_hand', 'reserved', 'safety_stock', 'deficit', 'version',
    'low_stock_threshold', 'offline_buffer', 'terms', 'split')
  row = {
    key = key,
    exists = f[5] ~= false,
    on_hand = tonumber(f[1]) or 0,
    reserved = tonumber(f[2]) or 0,
    safety_stock = tonumber(f[3]) or 0,
    deficit = tonumber(f[4]) or 0,
    version = tonumber(f[5]) or 0,
    low_stock_threshold = tonumber(f[6]) or 0,
    -- Units that are held back while the location's tills are silent; mostly not there.
    offline_buffer = f[7] and tonumber(f[7]) or 0,
    -- Units promised with nothing on the shelf for them. Only a row with terms has any.
    backordered = 0,
    touched = false,
    -- What only a reserve touches is all that most calls write.
    shelf_touched = f[5] == false,
    -- A row that never had a deficit does not pay for the column.
    has_deficit = f[4] ~= false,
    away = 0, epoch = 0, is_open = true, parts_are_closed = true,
  }
  if f[8] then
    row.terms = cmsgpack.unpack(f[8])
    row.backordered = tonumber(redis.call('HGET', key, 'backordered') or '0')
  end
  if f[9] then read_split(row, f[9]) end
  rows[key] = row
  return row
end

-- Units on the shelf that nobody was promised and nothing holds back. Of a split row those here:
-- negative where more are promised or kept back than are there.
local function unreserved(row)
  return row.on_hand - row.reserved - row.safety_stock - row.offline_buffer - row.away
end

-- Units that may still be promised from the shelf: what is free there goes to backorders first.
local function available(row)
  if row.is_part and not row.is_open then return 0 end
  local units = unreserved(row) - row.backordered
  if units < 0 then return 0 end
  return units
end

-- True where `units` of them may not go from the shelf or be kept back yet. What the parts can still
-- promise must not be gone already, nor may they promise what was given back while units are missing.
local function is_short_at_home(row, units)
  return not row.parts_are_closed and units > 0 and units > unreserved(row)
end

-- What stands for a plan: of a cart, whose rows are all at home.
local ANYWHERE = -1

-- True where units of a row are promised elsewhere, or may be there, by the plan that the caller
-- knows of.
local function is_elsewhere(row, plan, quantity)
  if plan >= 0 then return row.epoch ~= plan or not row.is_open end
  return plan == ANYWHERE and row.away > 0 and quantity > available(row)
end

local LINE, LEVELS_OF, PART_LINE = array_of(4), array_of(4), array_of(6)

-- The line of a row that has more than the four levels that every row has, or of which more than
-- these change: the others stand behind them, and behind the deltas the row's terms.
local function long_line(row, sku, on_hand, reserved, safety_stock, deficit, threshold, buffer,
    backordered)
  if threshold then
    row.low_stock_threshold = row.low_stock_threshold + threshold
    row.sets_threshold = true
  end
  row.offline_buffer = row.offline_buffer + (buffer or 0)
  row.backordered = row.backordered + (backordered or 0)
  local levels = {row.on_hand, row.reserved, row.safety_stock, row.deficit,
    row.low_stock_threshold}
  if row.offline_buffer > 0 or row.backordered > 0 then levels[6] = row.offline_buffer end
  if row.backordered > 0 then levels[7] = row.backordered end
  local deltas = {on_hand, reserved, safety_stock, deficit}
  if threshold or buffer or backordered then deltas[5] = threshold or 0 end
  if buffer or backordered then deltas[6] = buffer or 0 end
  if backordered then
    deltas[7] = backordered
    row.changes_backordered = true
  end
  return cmsgpack.pack({sku, row.version, levels, deltas, row.terms})
end

-- The line of a part says so at its end: it is no change of the row that readers know.
local function part_line(row, sku, on_hand, reserved)
  return PART_LINE .. cmsgpack.pack(sku, row.version)
    .. LEVELS_OF .. cmsgpack.pack(row.on_hand, row.reserved, 0, 0)
    .. LEVELS_OF .. cmsgpack.pack(on_hand, reserved, 0, 0) .. cmsgpack.pack(nil, true)
end

-- Applies the deltas to the copy and returns the ledger's line for it, as msgpack:
-- {sku, version, {on_hand, reserved, safety_stock, deficit}, {the same four as deltas}}. A row with
-- a low_stock_threshold says it as a fifth of its levels and one with an offline_buffer as a sixth,
-- so that a reader of the ledger can tell from this line alone what can be promised and when the
-- row is low; one with backorders says them as a seventh. A row with terms says these, whole, as a
-- fifth element of the line. `threshold`, `buffer` and `backordered` are the changes of these, or
-- nil.
local function change_row(row, sku, on_hand, reserved, safety_stock, deficit, threshold, buffer,
    backordered)
  row.on_hand = row.on_hand + on_hand
  row.reserved = row.reserved + reserved
  row.safety_stock = row.safety_stock + safety_stock
  row.deficit = row.deficit + deficit
  row.version = row.version + 1
  row.exists = true
  if on_hand ~= 0 or safety_stock ~= 0 or deficit ~= 0 then row.shelf_touched = true end
  if not row.touched then
    row.touched = true
    touched_rows[#touched_rows + 1] = row
  end
  if row.is_part then return part_line(row, sku, on_hand, reserved) end
  if threshold or buffer or row.low_stock_threshold > 0 or row.offline_buffer > 0 or row.terms then
    return long_line(row, sku, on_hand, reserved, safety_stock, deficit, threshold, buffer,
      backordered)
  end
  return LINE .. cmsgpack.pack(sku, row.version)
    .. LEVELS_OF .. cmsgpack.pack(row.on_hand, row.reserved, row.safety_stock, row.deficit)
    .. LEVELS_OF .. cmsgpack.pack(on_hand, reserved, safety_stock, deficit)
end

-- Adds to a reply what few rows have: the threshold, the units held back, the backorders, the terms.
local function add_settings(reply, row)
  if row.low_stock_threshold > 0 or row.offline_buffer > 0 or row.terms then
    reply[#reply + 1] = row.low_stock_threshold
  end
  if row.offline_buffer > 0 or row.terms then reply[#reply + 1] = row.offline_buffer end
  if row.terms then
    reply[#reply + 1] = row.backordered
    reply[#reply + 1] = row.terms
  end
end

-- Units on the shelf after `quantity` more (or fewer) of them. Units that left the shelf although
-- the books had none are a deficit; what arrives pays it first. So the sum on_hand - deficit is the
-- same in whatever order the events come. Returns the deltas of on_hand and deficit.
local function shelf_deltas(row, quantity)
  local books = row.on_hand - row.deficit + quantity
  if books >= 0 then
    return books - row.on_hand, -row.deficit
  end
  return -row.on_hand, -books - row.deficit
end

local function write_rows()
  for i = 1, #touched_rows do
    local row = touched_rows[i]
    if not row.shelf_touched then
      redis.call('HSET', row.key, 'reserved', integer(row.reserved),
        'version', integer(row.version))
    elseif row.has_deficit or row.deficit > 0 then
      redis.call('HSET', row.key, 'on_hand', integer(row.on_hand),
        'reserved', integer(row.reserved), 'safety_stock', integer(row.safety_stock),
        'version', integer(row.version), 'deficit', integer(row.deficit))
    else
      redis.call('HSET', row.key, 'on_hand', integer(row.on_hand),
        'reserved', integer(row.reserved), 'safety_stock', integer(row.safety_stock),
        'version', integer(row.version))
    end
    if row.sets_threshold then
      -- As with the deficit: a row without a threshold does not pay for the column.
      if row.low_stock_threshold > 0 then
        redis.call('HSET', row.key, 'low_stock_threshold', integer(row.low_stock_threshold))
      else
        redis.call('HDEL', row.key, 'low_stock_threshold')
      end
    end
    if row.changes_terms then
      if row.terms then
        redis.call('HSET', row.key, 'terms', cmsgpack.pack(row.terms))
      else
        redis.call('HDEL', row.key, 'terms')
      end
    end
    if row.changes_backordered then
      if row.backordered > 0 then
        redis.call('HSET', row.key, 'backordered', integer(row.backordered))
      else
        redis.call('HDEL', row.key, 'backordered')
      end
    end
  end
end
