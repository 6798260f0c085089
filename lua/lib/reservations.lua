-- Reservations, each read once a script and written once.
--
-- Hash: state, expires_at (ms, while held), body (msgpack), and once they apply confirmed_at,
-- ended_at, order_ref (when confirm gave one, or of a moved one the move's id), picked (msgpack, when committed).
-- body: {merchant, location, actor, fingerprint, ttl_ms, order_ref,
--        lines {{sku, quantity}, ...}, missing {{sku, quantity}, ...}, created_at,
--        first lines, extras}
-- Only an amendment or a decision changes a body: `lines` are what is held now, and `first lines`, which are only
-- there since, what was held at first, as a retry of the reserve is to be told. extras, a map, are
-- only there where the promise was made on a row's terms (see pledges.lua); without an amendment the
-- first lines of such a reservation are empty, and it may have a field more, waiting.

local BODY_MERCHANT, BODY_LOCATION, BODY_FINGERPRINT, BODY_ORDER_REF = 1, 2, 4, 6
local BODY_LINES, BODY_MISSING, BODY_CREATED_AT, BODY_FIRST_LINES, BODY_EXTRAS = 7, 8, 9, 10, 11

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
    packed_body = f[3],
    body = cmsgpack.unpack(f[3]),
    confirmed_at = tonumber(f[4]) or 0,
    ended_at = tonumber(f[5]) or 0,
    order_ref = f[6] or '',
    picked = f[7] or '',
  }
  reservation.extras = reservation.body[BODY_EXTRAS]
  if reservation.extras then
    -- Units of each line that there is nothing on the shelf for yet: {sku = {units, place}}.
    reservation.packed_waiting = redis.call('HGET', key, 'waiting')
    reservation.waiting = reservation.packed_waiting
      and cmsgpack.unpack(reservation.packed_waiting) or {}
  end
  reservations[key] = reservation
  return reservation
end

-- The reservation at `key` if it is the merchant's; another merchant's is as unknown as none.
local function reservation_of(key, merchant)
  local reservation = reservation_at(key)
  if reservation and reservation.body[BODY_MERCHANT] == merchant then return reservation end
  return nil
end

-- What stands for what in it, as lib/wishes.lua lists it; nil where nothing does.
local STANDS_ASKED, STANDS_SKU, STANDS_UNITS, STANDS_SERVED, STANDS_KIND = 1, 2, 3, 4, 7

local function stands_for(reservation)
  return reservation.extras and reservation.extras.stands_for
end

-- True where two lists say the same, each an array of arrays: lines, or what stands for what.
local function is_same_list(one, other)
  if #one ~= #other then return false end
  for i, element in ipairs(one) do
    for j, value in ipairs(element) do
      if other[i][j] ~= value then return false end
    end
  end
  return true
end

-- True while somebody has to accept its substitutes first.
local function is_proposed(reservation)
  return reservation.extras and reservation.extras.proposed
end

local function is_live(reservation)
  return reservation.state == 'held' or reservation.state == 'confirmed'
end

-- What a reservation waits for, as msgpack; nothing of one that was not promised on terms.
local function waiting_of(reservation)
  return reservation.extras and cmsgpack.pack(reservation.waiting) or ''
end

-- The beginning of what is told of a reservation; what was picked, its body and what it waits for,
-- which is as waiting_of() has it, are to follow.
local function described(waiting, ...)
  return array_of(waiting == '' and 8 or 9) .. cmsgpack.pack(...)
end

-- What every verb on a reservation tells of it, as msgpack; `engine.reservations` decodes this.
local function describe(code, reservation)
  local picked, waiting = reservation.picked, waiting_of(reservation)
  if picked == '' then picked = array_of(0) end
  return described(waiting, code, reservation.state, reservation.expires_at,
    reservation.confirmed_at, reservation.ended_at, reservation.order_ref)
    .. picked .. reservation.packed_body .. waiting
end

-- The body of a reservation with other lines, as msgpack.
local function body_with(reservation, lines)
  local body = {}
  for i = 1, BODY_EXTRAS do body[i] = reservation.body[i] end
  body[BODY_LINES] = lines
  local first = body[BODY_FIRST_LINES]
  if not first or #first == 0 then body[BODY_FIRST_LINES] = reservation.body[BODY_LINES] end
  return cmsgpack.pack(body)
end

-- Has a reply that is remembered end with what may have changed of a reservation before a retry asks
-- for the first answer: {..., sku, units, sku, units, ...}, or of one with extras
-- {..., {lines, missing, extras, waiting}}, of the extras those that are told.
local TOLD_EXTRAS = {'channel', 'buyer', 'stands_for', 'proposed'}
local TOLD_LINES, TOLD_MISSING, TOLD_OF_EXTRAS, TOLD_WAITING = 1, 2, 3, 4

local function append_told(reply, reservation)
  local body, extras = reservation.body, {}
  if reservation.extras then
    for _, name in ipairs(TOLD_EXTRAS) do extras[name] = reservation.extras[name] end
    -- A copy: the next command of the group may have it wait for less.
    local waiting = cmsgpack.unpack(cmsgpack.pack(reservation.waiting))
    reply[#reply + 1] = {body[BODY_LINES], body[BODY_MISSING], extras, waiting}
    return reply
  end
  for _, line in ipairs(body[BODY_LINES]) do
    reply[#reply + 1] = line[1]
    reply[#reply + 1] = line[2]
  end
  return reply
end

-- Returns the body as it was told in such a reply, from its element `first` on, and what it waited
-- for then, both as msgpack.
local function told_earlier(reservation, reply, first)
  local body, told, waiting = {}, reply[first], ''
  for i = 1, BODY_CREATED_AT do body[i] = reservation.body[i] end
  if type(told) == 'table' then
    body[BODY_LINES], body[BODY_MISSING] = told[TOLD_LINES], told[TOLD_MISSING]
    body[BODY_FIRST_LINES], body[BODY_EXTRAS] = {}, told[TOLD_OF_EXTRAS]
    waiting = cmsgpack.pack(told[TOLD_WAITING])
  else
    local lines = {}
    for i = first, #reply, 2 do lines[#lines + 1] = {reply[i], reply[i + 1]} end
    body[BODY_LINES] = lines
  end
  return cmsgpack.pack(body), waiting
end

-- What a retry of the reserve is to be told of what an amendment or a decision may change.
local function first_told(reservation)
  local extras = reservation.extras or {}
  return extras.first or {reservation.body[BODY_MISSING], extras.stands_for or {},
    extras.proposed or {}, extras.channel or '', extras.buyer or ''}
end

-- Gives a live reservation other lines; its rows are the caller's business.
local function amend_reservation(reservation, id, lines)
  reservation.id = id
  reservation.packed_body = body_with(reservation, lines)
  reservation.body = cmsgpack.unpack(reservation.packed_body)
  reservation.amended = true
  touch_reservation(reservation)
end

-- The same, with other extras; `missing` is what it lacks of what was asked for.
local function remake_reservation(reservation, id, lines, missing, extras)
  reservation.body[BODY_MISSING], reservation.body[BODY_EXTRAS] = missing, extras
  reservation.extras = extras
  amend_reservation(reservation, id, lines)
end

-- True where the time of some hold of the partition is up, so that a reclaim may find units;
-- `reclaimed` says that it was done just now.
local due_holds
local function holds_are_due(reclaimed)
  if reclaimed then return false end
  if due_holds == nil then
    due_holds = #redis.call('ZRANGEBYSCORE', HOLDS, '-inf', integer(now), 'LIMIT', 0, 1) > 0
  end
  return due_holds
end

-- Reservations that this script makes.
local new_reservations, new_holds = {}, {}
local new_open, open_reservation = collector()

-- `waiting`, packed, is of those only that wait for units.
local function add_reservation(key, open_key, id, expires_at, body, waiting)
  need_sorted_set(HOLDS)
  need_sorted_set(open_key)
  local expires = moment(expires_at)
  new_reservations[#new_reservations + 1] = {key, expires, body, waiting}
  new_holds[#new_holds + 1] = expires
  new_holds[#new_holds + 1] = id
  open_reservation(open_key, moment(now), id)
end

local function write_new_reservations()
  if #new_reservations == 0 then return end
  for i = 1, #new_reservations do
    local new = new_reservations[i]
    redis.call('HSET', new[1], 'state', 'held', 'expires_at', new[2], 'body', new[3])
    if new[4] then redis.call('HSET', new[1], 'waiting', new[4]) end
  end
  redis.call('ZADD', HOLDS, unpack(new_holds))
  for open_key, members in pairs(new_open) do
    redis.call('ZADD', open_key, unpack(members))
  end
end

-- Writes what a reservation waits for.
local function write_waiting(reservation)
  if next(reservation.waiting) then
    redis.call('HSET', reservation.key, 'waiting', cmsgpack.pack(reservation.waiting))
  else
    redis.call('HDEL', reservation.key, 'waiting')
  end
end

-- Writes the fields that may have changed in the state that a reservation is in now.
local function write_fields(reservation)
  local key, state = reservation.key, reservation.state
  if reservation.amended then redis.call('HSET', key, 'body', reservation.packed_body) end
  if reservation.rewaits then write_waiting(reservation) end
  if state == 'held' then
    redis.call('HSET', key, 'expires_at', moment(reservation.expires_at))
  elseif state == 'confirmed' then
    redis.call('HSET', key, 'state', state, 'expires_at', '0',
      'confirmed_at', moment(reservation.confirmed_at), 'order_ref', reservation.order_ref)
  else
    redis.call('HSET', key, 'state', state, 'ended_at', moment(reservation.ended_at),
      'picked', reservation.picked)
    if reservation.moved then redis.call('HSET', key, 'order_ref', reservation.order_ref) end
    if reservation.packed_waiting then redis.call('HDEL', key, 'waiting') end
    redis.call('PEXPIRE', key, moment(limits.retention_ms))
  end
end

-- `id` is the member of both indexes. Ended reservations stay readable for limits.retention_ms, so
-- that a retry still finds its answer.
local function write_reservations()
  local extended, ended = {}, {}
  local closed, close_reservation = collector()
  for _, reservation in ipairs(touched_reservations) do
    write_fields(reservation)
    if reservation.state == 'held' then
      extended[#extended + 1] = moment(reservation.expires_at)
      extended[#extended + 1] = reservation.id
    else
      ended[#ended + 1] = reservation.id
      if reservation.open_key then close_reservation(reservation.open_key, reservation.id) end
    end
  end
  if #extended > 0 then redis.call('ZADD', HOLDS, unpack(extended)) end
  if #ended > 0 then redis.call('ZREM', HOLDS, unpack(ended)) end
  for open_key, ids in pairs(closed) do
    redis.call('ZREM', open_key, unpack(ids))
  end
end
