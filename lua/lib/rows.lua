-- Stock rows, each read once a script and written once.

local rows, touched_rows = {}, {}

-- Where the units of a row are that is not split: all of them here.
local ALL_HERE = {epoch = 0, is_open = true, parts_are_closed = true, away = 0}

-- What the column `split` says of a row whose units are spread over partitions; lib/split.lua writes
-- it. Its home has the totals, and what is free at its parts, or on the way, cannot be promised here.
-- A part takes what is promised by the row's plan of the moment, its epoch, while it is open.
local function read_split(row, text)
  row.split = text
  local epoch, open = string.match(text, '^part %d+ (%d+) ([01])')
  if epoch then
    row.spread = {is_part = true, epoch = tonumber(epoch), is_open = open == '1', away = 0}
    return
  end
  local places, cells
  epoch, open, places, cells = string.match(text, '^home (%d+) ([01]) (%S+) %S+ (%S+)$')
  local spread = {epoch = tonumber(epoch), away = 0, is_any = places ~= '-'}
  local settled = true
  for granted, returned, picked, reserved, heard in
    string.gmatch(cells, '%d+:(%d+):%d+:%d+:(%d+):(%d+):(%d+):(%d+)') do
    spread.away = spread.away + granted - returned - picked - reserved
    settled = settled and math.floor(heard / 2) == spread.epoch
    spread.is_any = spread.is_any or granted - returned - picked > 0
  end
  spread.is_open = settled and places == '-'
  spread.parts_are_closed = settled and open == '0'
  row.spread = spread
end

-- Columns that are numbers, where a row has them.
local NUMBERS = {on_hand = true, reserved = true, safety_stock = true, deficit = true, version = true,
  low_stock_threshold = true, offline_buffer = true, backordered = true}

local function row_at(key)
  local row = rows[key]
  if row then return row end
  -- With what a reserve notes in it these are 15 fields: the 17th would double the table.
  row = {
    key = key,
    exists = false,
    on_hand = 0,
    reserved = 0,
    safety_stock = 0,
    deficit = 0,
    version = 0,
    low_stock_threshold = 0,
    -- Units that are held back while the location's tills are silent; mostly not there.
    offline_buffer = 0,
    -- Units promised with nothing on the shelf for them. Only a row with terms has any.
    backordered = 0,
    touched = false,
    -- What only a reserve touches is all that most calls write.
    shelf_touched = true,
    -- A row that never had a deficit does not pay for the column.
    has_deficit = false,
    spread = ALL_HERE,
  }
  -- One answer with what there is costs less than many that say what there is not.
  local columns = redis.call('HGETALL', key)
  for i = 1, #columns, 2 do
    local name, value = columns[i], columns[i + 1]
    if name == 'terms' then
      row.terms = cmsgpack.unpack(value)
    elseif name == 'split' then
      read_split(row, value)
    elseif NUMBERS[name] then
      row[name] = tonumber(value) or 0
      if name == 'version' then
        row.exists, row.shelf_touched = true, false
      elseif name == 'deficit' then
        row.has_deficit = true
      end
    end
  end
  rows[key] = row
  return row
end

-- Units on the shelf that nobody was promised and nothing holds back. Of a split row those here:
-- negative where more are promised or kept back than are there.
local function unreserved(row)
  return row.on_hand - row.reserved - row.safety_stock - row.offline_buffer - row.spread.away
end

-- Units that may still be promised from the shelf: what is free there goes to backorders first.
local function available(row)
  if row.spread.is_part and not row.spread.is_open then return 0 end
  local units = unreserved(row) - row.backordered
  if units < 0 then return 0 end
  return units
end

-- True where `units` of them may not go from the shelf or be kept back yet. What the parts can still
-- promise must not be gone already, nor may they promise what was given back while units are missing.
local function is_short_at_home(row, units)
  return not row.spread.parts_are_closed and units > 0 and units > unreserved(row)
end

-- What stands for a plan: of a cart, whose rows are all at home.
local ANYWHERE = -1

-- True where units of a row are promised elsewhere, or may be there, by the plan that the caller
-- knows of.
local function is_elsewhere(row, plan, quantity)
  local spread = row.spread
  if plan >= 0 then return spread.epoch ~= plan or not spread.is_open end
  return plan == ANYWHERE and spread.away > 0 and quantity > available(row)
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

-- The four deltas as msgpack, and those of lines that only promise units or give them back, which most
-- do and of which many are the same.
local promised_deltas = {}
local function packed_deltas(on_hand, reserved, safety_stock, deficit)
  if on_hand ~= 0 or safety_stock ~= 0 or deficit ~= 0 then
    return LEVELS_OF .. cmsgpack.pack(on_hand, reserved, safety_stock, deficit)
  end
  local packed = promised_deltas[reserved]
  if not packed then
    packed = LEVELS_OF .. cmsgpack.pack(0, reserved, 0, 0)
    promised_deltas[reserved] = packed
  end
  return packed
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
  if row.spread.is_part then return part_line(row, sku, on_hand, reserved) end
  if threshold or buffer or row.low_stock_threshold > 0 or row.offline_buffer > 0 or row.terms then
    return long_line(row, sku, on_hand, reserved, safety_stock, deficit, threshold, buffer,
      backordered)
  end
  return LINE .. cmsgpack.pack(sku, row.version)
    .. LEVELS_OF .. cmsgpack.pack(row.on_hand, row.reserved, row.safety_stock, row.deficit)
    .. packed_deltas(on_hand, reserved, safety_stock, deficit)
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

-- Numbers go as they are: the server writes whole ones exactly, and for less than Lua would.
local function write_rows()
  for i = 1, #touched_rows do
    local row = touched_rows[i]
    if not row.shelf_touched then
      redis.call('HSET', row.key, 'reserved', row.reserved, 'version', row.version)
    elseif row.has_deficit or row.deficit > 0 then
      redis.call('HSET', row.key, 'on_hand', row.on_hand, 'reserved', row.reserved,
        'safety_stock', row.safety_stock, 'version', row.version, 'deficit', row.deficit)
    else
      redis.call('HSET', row.key, 'on_hand', row.on_hand, 'reserved', row.reserved,
        'safety_stock', row.safety_stock, 'version', row.version)
    end
    if row.sets_threshold then
      -- As with the deficit: a row without a threshold does not pay for the column.
      if row.low_stock_threshold > 0 then
        redis.call('HSET', row.key, 'low_stock_threshold', row.low_stock_threshold)
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
        redis.call('HSET', row.key, 'backordered', row.backordered)
      else
        redis.call('HDEL', row.key, 'backordered')
      end
    end
  end
end
