#!lua
-- reserve: promise units of one location to a shopper, for a while.
--
-- Command {keys, id, merchant, location, fingerprint, ttl_ms, order_ref, actor, partial, reclaimed,
--          lines}
--   lines      {{sku, quantity}, ...}; lines of one SKU are summed before they are checked
--   partial    true: hold what there is of each line, as long as that is not nothing at all
--   reclaimed  true: due holds were taken back just now, so do not refuse in hope of more
-- Keys     reservation, open index of the location, then the row of each line
-- Returns  {'ok', created_at}               held whole
--          {'ok', created_at, held, missing}  held in part, both as {{sku, quantity}, ...}
--          {'replayed', body}              the same id and fingerprint came before
--          {'key_reused'}                  the same id with another fingerprint
--          {'insufficient_stock', due, {{sku, requested, available, known}, ...}}
--            every line that does not fit; due is true where a reclaim may help
--          {'invalid', field}
-- Ledger   reserve, detail {ttl_ms, expires_at, order_ref, missing}
-- @include group
-- @include rows
-- @include ledger
-- @include reservations

local due_holds
local function holds_are_due(reclaimed)
  if reclaimed then return false end
  if due_holds == nil then
    due_holds = #redis.call('ZRANGEBYSCORE', HOLDS, '-inf', integer(now), 'LIMIT', 0, 1) > 0
  end
  return due_holds
end

-- The body of the reservation at `key`, made in this group or before it; nil where there is none.
local bodies = {}
local function body_at(key)
  local body = bodies[key]
  if body then return body end
  local text = redis.call('HGET', key, 'body')
  if text then return cmsgpack.unpack(text) end
  return nil
end

local function earlier_answer(body, merchant, location, fingerprint)
  if body[BODY_MERCHANT] ~= merchant or body[BODY_LOCATION] ~= location
    or body[BODY_FINGERPRINT] ~= fingerprint then
    return {'key_reused'}
  end
  return {'replayed', body}
end

-- Sums the lines by row, in the order of their first appearance; nil and the field if one is off.
local function wanted_rows(lines, first)
  if type(lines) ~= 'table' or #lines == 0 then return nil, 'lines' end
  local wanted, by_key = {}, {}
  for i = 1, #lines do
    local sku, quantity, key = lines[i][1], lines[i][2], KEYS[first + i - 1]
    if not is_text(sku) then return nil, 'sku' end
    if not is_integer(quantity, 1, MAX_QUANTITY) then return nil, 'quantity' end
    local want = by_key[key]
    if want then
      want.quantity = want.quantity + quantity
    else
      want = {sku = sku, quantity = quantity, row = row_at(key)}
      by_key[key] = want
      wanted[#wanted + 1] = want
    end
  end
  return wanted
end

local function short_lines(wanted)
  local short = {}
  for i = 1, #wanted do
    local want = wanted[i]
    local units = available(want.row)
    if want.quantity > units then
      short[#short + 1] = {want.sku, want.quantity, units, want.row.exists}
    end
  end
  return short
end

-- Takes what is wanted, or with `partial` what there is of it.
local function take(wanted)
  local held, missing, changes = {}, {}, {}
  for i = 1, #wanted do
    local want = wanted[i]
    local quantity = math.min(want.quantity, available(want.row))
    if quantity < want.quantity then
      missing[#missing + 1] = {want.sku, want.quantity - quantity}
    end
    if quantity > 0 then
      held[#held + 1] = {want.sku, quantity}
      changes[#changes + 1] = change_row(want.row, want.sku, 0, quantity, 0, 0)
    end
  end
  return held, missing, changes
end

local function nothing_left(wanted)
  for i = 1, #wanted do
    if available(wanted[i].row) > 0 then return false end
  end
  return true
end

local replies = each_command(function(command, first)
  local _, id, merchant, location, fingerprint, ttl_ms, order_ref, actor, partial, reclaimed,
    lines = unpack(command, 1, 11)
  local key = KEYS[first]
  local earlier = body_at(key)
  if earlier then return earlier_answer(earlier, merchant, location, fingerprint) end
  if not is_integer(ttl_ms, limits.min_ttl_ms, limits.max_ttl_ms) then
    return {'invalid', 'ttl_seconds'}
  end
  local wanted, bad_field = wanted_rows(lines, first + 2)
  if not wanted then return {'invalid', bad_field} end
  local short = short_lines(wanted)
  if #short > 0 then
    local due = holds_are_due(reclaimed)
    if due or not partial or nothing_left(wanted) then
      return {'insufficient_stock', due, short}
    end
  end

  local held, missing, changes = take(wanted)
  local expires_at = now + ttl_ms
  local body = {merchant, location, now, ttl_ms, order_ref, actor, fingerprint, held, missing}
  bodies[key] = body
  add_reservation(key, KEYS[first + 1], id, expires_at, body)
  record('reserve', id, merchant, location, actor, fingerprint, changes,
    {ttl_ms, expires_at, order_ref, missing})
  if #missing > 0 then return {'ok', now, held, missing} end
  return {'ok', now}
end)

-- After this point nothing may fail.
write_rows()
write_new_reservations()
write_ledger()
return cmsgpack.pack(replies)
