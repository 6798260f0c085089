#!lua
-- reserve: promise units of one location to a shopper, for a while.
--
-- Command {id, who, terms, lines, ttl_ms, partial, reclaimed, plan, sku, quantity, sku, quantity, ...}
--   who        msgpack of merchant, location, actor, fingerprint, one after the other
--   terms      msgpack of ttl_ms, order_ref, one after the other
--   lines      msgpack of {{sku, quantity}, ...}, the same as follow: each SKU once
--   partial    true: hold what there is of each line, as long as that is not nothing at all
--   reclaimed  true: due holds were taken back just now, so do not refuse in hope of more
--   plan       of a single line the epoch by which the caller knows where the row takes promises, 0
--              where it is not split; ANYWHERE for a cart, whose rows are all at home, and GATHERED
--              once their units were fetched as far as that could be
-- Keys     reservation, open index of the location, then the row of each line
-- Returns  {'ok', created_at}               held whole
--          {'ok', created_at, held, missing}  held in part, both as {{sku, quantity}, ...}
--          {'replayed', body}              the same id and fingerprint came before
--          {'key_reused'}                  the same id with another fingerprint
--          {'insufficient_stock', due, {{sku, requested, available, known}, ...}}
--            every line that does not fit; due is true where a reclaim may help
--          {'terms', sku}                  its row has terms: `promise` is for that
--          {'split', {{sku, requested}, ...}}  the row takes promises elsewhere, or by another plan;
--            of a cart every line of a split row that is short, for its units may be elsewhere
--          {'invalid', field}
-- Ledger   reserve, detail {ttl_ms, order_ref, missing, expires_at}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include making

local OPERATION, DETAIL = array_of(8) .. cmsgpack.pack('reserve'), array_of(4)
local BODY, CREATED_AT = array_of(9), cmsgpack.pack(now)
local NOTHING_MISSING = array_of(0)
local HELD_WHOLE = cmsgpack.pack({'ok', now})

-- Reads the rows of the lines. Returns them, the lines that do not fit and whether some row is split,
-- or nil and the refusal. A row that stands in two lines would be checked twice and taken twice.
local function wanted_rows(first, lines)
  if #lines == 0 or #lines % 2 == 1 then return nil, {'invalid', 'lines'} end
  local wanted, short, has_split = {}, {}, false
  for i = 1, #lines, 2 do
    local sku, quantity, line = lines[i], lines[i + 1], (i + 1) / 2
    if not is_text(sku) then return nil, {'invalid', 'sku'} end
    if not is_integer(quantity, 1, MAX_QUANTITY) then return nil, {'invalid', 'quantity'} end
    local row = row_at(KEYS[first + 1 + line])
    if row.wanted_by == first then return nil, {'invalid', 'sku'} end
    if row.terms then return nil, {'terms', sku} end
    row.wanted_by = first
    wanted[line] = row
    has_split = has_split or row.split ~= nil
    local units = available(row)
    if quantity > units then short[#short + 1] = {sku, quantity, units, row.exists} end
  end
  return wanted, short, has_split
end

-- The lines whose units are elsewhere, or may be.
local function lines_elsewhere(wanted, lines, plan)
  local elsewhere = {}
  for i = 1, #wanted do
    if is_elsewhere(wanted[i], plan, lines[2 * i]) then
      elsewhere[#elsewhere + 1] = {lines[2 * i - 1], lines[2 * i]}
    end
  end
  return elsewhere
end

-- Takes what is wanted whole. Returns the ledger's lines.
local function take(wanted, lines)
  local changes = {}
  for i = 1, #wanted do
    changes[i] = change_row(wanted[i], lines[2 * i - 1], 0, lines[2 * i], 0, 0)
  end
  return changes
end

-- Takes what there is of each line. Returns what is held, what is missing, the ledger's lines.
local function take_what_there_is(wanted, lines)
  local held, missing, changes = {}, {}, {}
  for i = 1, #wanted do
    local sku, wish = lines[2 * i - 1], lines[2 * i]
    local quantity = math.min(wish, available(wanted[i]))
    if quantity < wish then missing[#missing + 1] = {sku, wish - quantity} end
    if quantity > 0 then
      held[#held + 1] = {sku, quantity}
      changes[#changes + 1] = change_row(wanted[i], sku, 0, quantity, 0, 0)
    end
  end
  return held, missing, changes
end

local replies = each_command(function(first, _, id, who, terms, packed_lines, ttl_ms, partial,
    reclaimed, plan, ...)
  local key = KEYS[first]
  local earlier = body_at(key)
  if earlier then return earlier_answer(earlier, who) end
  if not is_integer(ttl_ms, limits.min_ttl_ms, limits.max_ttl_ms) then
    return {'invalid', 'ttl_seconds'}
  end
  local lines = {...}
  local wanted, short, has_split = wanted_rows(first, lines)
  if not wanted then return short end
  if has_split or plan > 0 then
    local elsewhere = lines_elsewhere(wanted, lines, plan)
    if #elsewhere > 0 then return {'split', elsewhere} end
  end

  local changes
  local reply, packed_missing = HELD_WHOLE, NOTHING_MISSING
  if #short == 0 then
    changes = take(wanted, lines)
  else
    local due = holds_are_due(reclaimed)
    if due or not partial then return {'insufficient_stock', due, short} end
    local held, missing
    held, missing, changes = take_what_there_is(wanted, lines)
    if #held == 0 then return {'insufficient_stock', due, short} end
    packed_lines, packed_missing = cmsgpack.pack(held), cmsgpack.pack(missing)
    reply = {'ok', now, held, missing}
  end

  local expires_at = now + ttl_ms
  local body = BODY .. who .. terms .. packed_lines .. packed_missing .. CREATED_AT
  bodies[key] = body
  add_reservation(key, KEYS[first + 1], id, expires_at, body)
  record_packed(OPERATION .. cmsgpack.pack(id) .. who .. array_of(#changes) .. table.concat(changes)
    .. DETAIL .. terms .. packed_missing .. cmsgpack.pack(expires_at))
  return reply
end)

-- After this point nothing may fail.
write_rows()
write_new_reservations()
write_ledger()
return table.concat(replies)
