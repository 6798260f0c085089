#!lua
-- promise: a reserve on terms: of rows that have some, or by somebody who asks for some; or of what
-- others may stand for, and of kits.
--
-- Command {id, who, terms, lines, ttl_ms, partial, reclaimed, plan, ask, sku, quantity, sku, quantity,
--          ...}
--   who, terms, lines, ttl_ms, partial, reclaimed, plan  as for `reserve`
--   ask      {promise, channel, buyer, by, claims, lapses_at, wishes}, see room_of(); with wishes, see
--            wishes.lua, they say how much is asked for, and the quantity of each row is 0
-- Keys     reservation, open index of the location, then of each line the row and its queue, and
--          where there is a buyer what counts for them of the row
-- Returns  {'ok', created_at, held, missing, extras}  both as {{sku, quantity}, ...}; without extras
--            where no row that units are held of has terms, and nothing stands for anything: that
--            is a plain reservation
--          {'replayed', body}              the same id and fingerprint came before
--          {'key_reused'}                  the same id with another fingerprint
--          {'insufficient_stock', due, {{sku, requested, room, known, limited by}, ...}}
--            every line that there is no room for; due is true where a reclaim may help, if only
--            to a wish that a substitute would serve otherwise
--          {'split', {{sku, requested}, ...}}  as for `reserve`; or a wish may be served as it was
--            asked for with units that are elsewhere
--          {'buyer_cap_exceeded', due, {{sku, requested, room, known, 'buyer'}, ...}}
--            the same, where the buyer's cap alone is in the way
--          {'unclaimed', now, {{sku, cap, window_ms}, ...}}  units of these rows have to be claimed for
--            the buyer first; or they were, for another cap or too long ago
--          {'invalid', field}               buyer: a row has a cap a buyer, and nobody is named
-- Ledger   as `reserve`, with extras at the end of its detail
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include making
-- @include room
-- @include wishes

local OPERATION, CREATED_AT = array_of(8) .. cmsgpack.pack('reserve'), cmsgpack.pack(now)
local DETAIL, LONG_DETAIL = array_of(4), array_of(5)
local BODY, LONG_BODY, NOT_AMENDED = array_of(9), array_of(11), array_of(0)

-- Reads the rows of the lines, and what room they have. Returns them and the lines that do not fit,
-- or nil and the refusal.
local function wanted_rows(first, lines, ask)
  if #lines == 0 or #lines % 2 == 1 then return nil, {'invalid', 'lines'} end
  local wanted, short = {}, {}
  local keys_of_a_line = ask.buyer == '' and 2 or 3
  for i = 1, #lines, 2 do
    local sku, quantity, line = lines[i], lines[i + 1], (i + 1) / 2
    if not is_text(sku) then return nil, {'invalid', 'sku'} end
    if not is_integer(quantity, ask.wishes and 0 or 1, MAX_QUANTITY) then
      return nil, {'invalid', 'quantity'}
    end
    local at = first + 2 + (line - 1) * keys_of_a_line
    local row = row_at(KEYS[at])
    if row.wanted_by == first then return nil, {'invalid', 'sku'} end
    row.wanted_by = first
    if row.terms and row.terms.buyer_cap and ask.buyer == '' then
      return nil, {'invalid', 'buyer'}
    end
    local room = room_of(row, ask, KEYS[at + 2])
    wanted[line] = {row = row, sku = sku, quantity = quantity, room = room, queue = KEYS[at + 1]}
    if quantity > room.most then
      short[#short + 1] = {sku, quantity, room.most, row.exists, room.limited_by}
    end
  end
  local refused = unclaimed(wanted, ask)
  if refused then return nil, refused end
  return wanted, short
end

-- Takes what there is room for. Returns what is held, what is missing, the ledger's lines.
local function take(pledge, wanted)
  local held, missing, changes = {}, {}, {}
  for _, line in ipairs(wanted) do
    local units = math.min(line.quantity, line.room.most)
    if units < line.quantity then missing[#missing + 1] = {line.sku, line.quantity - units} end
    if units > 0 then
      held[#held + 1] = {line.sku, units}
      changes[#changes + 1] = take_room(pledge, line.row, line.sku, units, line.room, line.queue)
    end
  end
  return held, missing, changes
end

-- The lines whose units are elsewhere, or may be.
local function lines_elsewhere(wanted, plan)
  local elsewhere = {}
  for _, line in ipairs(wanted) do
    if is_elsewhere(line.row, plan, line.quantity) then
      elsewhere[#elsewhere + 1] = {line.sku, line.quantity}
    end
  end
  return elsewhere
end

-- True where there is something to hold of what was asked for.
local function has_room(wanted, outcome)
  for _, line in ipairs(wanted) do
    if (outcome and line.quantity or line.room.most) > 0 then return true end
  end
  return false
end

-- Has the reservation remember what stands for what. Returns what is missing.
local function note_wishes(pledge, outcome)
  if #outcome.stands_for > 0 then pledge.extras.stands_for = outcome.stands_for end
  if #outcome.proposed > 0 then pledge.extras.proposed = outcome.proposed end
  pledge.has_extras = pledge.has_extras or #outcome.stands_for > 0
  return outcome.missing
end

local replies = each_command(function(first, _, id, who, terms, _, ttl_ms, partial, reclaimed, plan,
    ask, ...)
  local key = KEYS[first]
  local earlier = body_at(key)
  if earlier then return earlier_answer(earlier, who) end
  if not is_integer(ttl_ms, limits.min_ttl_ms, limits.max_ttl_ms) then
    return {'invalid', 'ttl_seconds'}
  end
  local wanted, short = wanted_rows(first, {...}, ask)
  if not wanted then return short end
  local pledge, outcome, elsewhere = new_pledge(id, ask), nil, {}
  if ask.wishes then
    outcome = serve_wishes(ask.wishes, wanted, partial)
    short = outcome.short
    if plan == ANYWHERE and (#short > 0 or outcome.is_substituted) then
      elsewhere = wishes_elsewhere(ask.wishes, wanted)
    end
  else
    elsewhere = lines_elsewhere(wanted, plan)
  end
  if #elsewhere > 0 then return {'split', elsewhere} end
  if #short > 0 or (outcome and outcome.is_substituted) then
    local due = holds_are_due(reclaimed)
    if due then return refused_for_units(true, short) end
  end
  if #short > 0 and not (partial and has_room(wanted, outcome)) then
    return refused_for_units(false, short)
  end

  local held, missing, changes = take(pledge, wanted)
  if outcome then missing = note_wishes(pledge, outcome) end
  local expires_at = now + ttl_ms
  local packed_missing, extras = cmsgpack.pack(missing), ''
  local body = who .. terms .. cmsgpack.pack(held) .. packed_missing .. CREATED_AT
  if pledge.has_extras then
    extras = cmsgpack.pack(pledge.extras)
    body = LONG_BODY .. body .. NOT_AMENDED .. extras
  else
    body = BODY .. body
  end
  bodies[key] = body
  add_reservation(key, KEYS[first + 1], id, expires_at, body,
    next(pledge.waiting) and cmsgpack.pack(pledge.waiting))
  record_packed(OPERATION .. cmsgpack.pack(id) .. who .. array_of(#changes) .. table.concat(changes)
    .. (pledge.has_extras and LONG_DETAIL or DETAIL) .. terms .. packed_missing
    .. cmsgpack.pack(expires_at) .. extras)
  return {'ok', now, held, missing, pledge.has_extras and pledge.extras or nil}
end)

-- After this point nothing may fail.
write_rows()
write_new_reservations()
write_pledges()
write_ledger()
return table.concat(replies)
