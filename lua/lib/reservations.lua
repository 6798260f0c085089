-- Reservations, each read once a script and written once.
--
-- Hash: state, expires_at (ms, while held), body (msgpack, never changes), and once they apply
-- confirmed_at, ended_at, order_ref (when confirm gave one), picked (msgpack, when committed).
-- body: {merchant, location, created_at, ttl_ms, order_ref, actor, fingerprint,
--        lines {{sku, quantity}, ...}, missing {{sku, quantity}, ...}}

local BODY_MERCHANT, BODY_LOCATION, BODY_CREATED_AT, BODY_TTL_MS = 1, 2, 3, 4
local BODY_ORDER_REF, BODY_FINGERPRINT, BODY_LINES, BODY_MISSING = 5, 7, 8, 9

local reservations, touched_reservations = {}, {}

local function touch_reservation(reservation)
  if not reservation.touched then
    need_sorted_set(HOLDS)
    reservation.touched = true
    touched_reservations[#touched_reservations + 1] = reservation
  end
end

-- The reservation at `key`, or nil where there is none.
local function reservation_at(key)
  local reservation = reservations[key]
  if reservation then return reservation end
  local f = redis.call('HMGET', key, 'state', 'expires_at', 'body', 'confirmed_at', 'ended_at',
    'order_ref', 'picked')
  if not f[1] then return nil end
  reservation = {
    key = key,
    state = f[1],
    expires_at = tonumber(f[2]) or 0,
    body = cmsgpack.unpack(f[3]),
    confirmed_at = tonumber(f[4]) or 0,
    ended_at = tonumber(f[5]) or 0,
    order_ref = f[6] or '',
    picked = f[7] or '',
  }
  reservations[key] = reservation
  return reservation
end

-- The reservation at `key` if it is the merchant's; another merchant's is as unknown as none.
local function reservation_of(key, merchant)
  local reservation = reservation_at(key)
  if reservation and reservation.body[BODY_MERCHANT] == merchant then return reservation end
  return nil
end

local function is_live(reservation)
  return reservation.state == 'held' or reservation.state == 'confirmed'
end

-- What every verb on a reservation tells of it; `engine.inventory` decodes this.
local function describe(code, reservation)
  local picked = {}
  if reservation.picked ~= '' then picked = cmsgpack.unpack(reservation.picked) end
  return {code, reservation.state, reservation.expires_at, reservation.confirmed_at,
    reservation.ended_at, reservation.order_ref, picked, reservation.body}
end

-- Ends the promise of a live reservation's lines: `picked` maps a SKU to the units that left the
-- shelf, the rest goes back. Returns the ledger's lines.
local function settle_rows(reservation, row_keys, picked)
  local lines = {}
  for i, line in ipairs(reservation.body[BODY_LINES]) do
    local sku, quantity = line[1], line[2]
    lines[i] = change_row(row_at(row_keys[sku]), sku, -(picked[sku] or 0), -quantity, 0, 0)
  end
  return lines
end

-- Maps each SKU of the reservation to its row's key. A command declares them as `skus`, whose keys
-- follow from KEYS[first]; nil where the reservation has a line that the command did not declare.
local function declared_rows(reservation, skus, first)
  local row_keys = {}
  for i, sku in ipairs(skus) do
    row_keys[sku] = KEYS[first + i - 1]
  end
  for _, line in ipairs(reservation.body[BODY_LINES]) do
    if not row_keys[line[1]] then return nil end
  end
  return row_keys
end

local function end_reservation(reservation, id, state, open_key)
  reservation.id = id
  reservation.state = state
  reservation.ended_at = now
  reservation.open_key = open_key
  need_sorted_set(open_key)
  touch_reservation(reservation)
end

-- Reservations that this script makes. The members of an index are written in one call each.
local new_reservations, new_holds, new_open = {}, {}, {}

local function add_reservation(key, open_key, id, expires_at, body)
  need_sorted_set(HOLDS)
  need_sorted_set(open_key)
  new_reservations[#new_reservations + 1] = {key, integer(expires_at), body}
  new_holds[#new_holds + 1] = integer(expires_at)
  new_holds[#new_holds + 1] = id
  local members = new_open[open_key]
  if not members then
    members = {}
    new_open[open_key] = members
  end
  members[#members + 1] = integer(now)
  members[#members + 1] = id
end

local function write_new_reservations()
  if #new_reservations == 0 then return end
  for i = 1, #new_reservations do
    local new = new_reservations[i]
    redis.call('HSET', new[1], 'state', 'held', 'expires_at', new[2], 'body',
      cmsgpack.pack(new[3]))
  end
  redis.call('ZADD', HOLDS, unpack(new_holds))
  for open_key, members in pairs(new_open) do
    redis.call('ZADD', open_key, unpack(members))
  end
end

-- `id` is the member of both indexes. Ended reservations stay readable for limits.retention_ms, so
-- that a retry still finds its answer.
local function write_reservations()
  for _, reservation in ipairs(touched_reservations) do
    local key, id = reservation.key, reservation.id
    if is_live(reservation) then
      redis.call('HSET', key, 'state', reservation.state,
        'expires_at', integer(reservation.expires_at),
        'confirmed_at', integer(reservation.confirmed_at), 'order_ref', reservation.order_ref)
      if reservation.state == 'held' then
        redis.call('ZADD', HOLDS, integer(reservation.expires_at), id)
      else
        redis.call('ZREM', HOLDS, id)
      end
    else
      redis.call('ZREM', HOLDS, id)
      redis.call('ZREM', reservation.open_key, id)
      redis.call('HSET', key, 'state', reservation.state,
        'ended_at', integer(reservation.ended_at), 'picked', reservation.picked)
      redis.call('PEXPIRE', key, integer(limits.retention_ms))
    end
  end
end
