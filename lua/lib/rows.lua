-- Stock rows, each read once a script and written once.

local rows, touched_rows = {}, {}

local function row_at(key)
  local row = rows[key]
  if row then return row end
  local f = redis.call('HMGET', key, 'on_hand', 'reserved', 'safety_stock', 'deficit', 'version',
    'low_stock_threshold')
  row = {
    key = key,
    exists = f[5] ~= false,
    on_hand = tonumber(f[1]) or 0,
    reserved = tonumber(f[2]) or 0,
    safety_stock = tonumber(f[3]) or 0,
    deficit = tonumber(f[4]) or 0,
    version = tonumber(f[5]) or 0,
    low_stock_threshold = tonumber(f[6]) or 0,
    touched = false,
    -- What only a reserve touches is all that most calls write.
    shelf_touched = f[5] == false,
    -- A row that never had a deficit does not pay for the column.
    has_deficit = f[4] ~= false,
  }
  rows[key] = row
  return row
end

local function available(row)
  local units = row.on_hand - row.reserved - row.safety_stock
  if units < 0 then return 0 end
  return units
end

local LINE, LEVELS_OF, LOW_LEVELS_OF = array_of(4), array_of(4), array_of(5)

-- The line of a row that has a threshold, or gets or loses one.
local function low_line(row, sku, on_hand, reserved, safety_stock, deficit, change)
  local deltas = LEVELS_OF .. cmsgpack.pack(on_hand, reserved, safety_stock, deficit)
  if change then
    row.low_stock_threshold = row.low_stock_threshold + change
    row.sets_threshold = true
    deltas = LOW_LEVELS_OF
      .. cmsgpack.pack(on_hand, reserved, safety_stock, deficit, change)
  end
  return LINE .. cmsgpack.pack(sku, row.version) .. LOW_LEVELS_OF
    .. cmsgpack.pack(row.on_hand, row.reserved, row.safety_stock, row.deficit,
      row.low_stock_threshold)
    .. deltas
end

-- Applies the deltas to the copy and returns the ledger's line for it, as msgpack:
-- {sku, version, {on_hand, reserved, safety_stock, deficit}, {the same four as deltas}}. A row that
-- has a low_stock_threshold says so as a fifth of its levels, so that a reader of the ledger can
-- tell from this line alone when the row falls to it; `low_stock_threshold` is its change, or nil.
local function change_row(row, sku, on_hand, reserved, safety_stock, deficit, low_stock_threshold)
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
  if low_stock_threshold or row.low_stock_threshold > 0 then
    return low_line(row, sku, on_hand, reserved, safety_stock, deficit, low_stock_threshold)
  end
  return LINE .. cmsgpack.pack(sku, row.version)
    .. LEVELS_OF .. cmsgpack.pack(row.on_hand, row.reserved, row.safety_stock, row.deficit)
    .. LEVELS_OF .. cmsgpack.pack(on_hand, reserved, safety_stock, deficit)
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
  end
end
