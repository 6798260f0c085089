#!lua flags=allow-oom
-- order: take the record of an order one step on.
--
-- Command {id, merchant, actor, fingerprint, step, revision, state, settled, ttl_ms, due_in_ms,
--          reason, plan, body, ref}
--   step         what is done, for the ledger: place, hold, confirm, ...
--   revision     of the record that the caller saw; 0 where it is to be made
--   state        from here on; settled: true where the parts are what it says that they are
--   ttl_ms       from now until an undecided order expires; 0 leaves that as it is
--   due_in_ms    when whoever drives orders shall look at it, from now; a held one is due when it
--                expires
--   reason       or ''
--   plan, body   msgpack, kept as they come; body '' where the record has it already
--   ref          member of the index of order references; '' for a record that is not listed
-- Keys     record, orders of the merchant, order references of the merchant, records to drive
-- Returns  {'ok' | 'replayed', ...order}   see describe_order()
--          {'not_found'}, {'key_reused'}, {'invalid', field}
--          {'order_changed', ...order}     somebody took a step since, or the state does not allow
--                                          this one: look at what it is now
-- Ledger   order, detail {step, state before, state, revision, settled, expires_at, confirmed_at,
--          ended_at, due_at, reason, plan, body, ref}
-- @include group
-- @include ledger

local MAY_BECOME = {
  [''] = {placing = true},
  placing = {placing = true, held = true, confirmed = true, failed = true, cancelled = true,
    expired = true},
  held = {held = true, placing = true, confirmed = true, failed = true, cancelled = true,
    expired = true},
  confirmed = {confirmed = true, fulfilled = true, cancelled = true, failed = true},
  fulfilled = {fulfilled = true, confirmed = true},
  failed = {failed = true, placing = true},
  cancelled = {cancelled = true},
  expired = {expired = true},
}
local ENDED = {fulfilled = true, failed = true, cancelled = true, expired = true}
local BODY_MERCHANT, BODY_FINGERPRINT = 2, 4

local orders, touched_orders = {}, {}

local function order_at(key)
  if orders[key] then return orders[key] end
  local f = redis.call('HMGET', key, 'state', 'revision', 'settled', 'created_at', 'expires_at',
    'confirmed_at', 'ended_at', 'reason', 'plan', 'body')
  local order = {
    key = key, state = f[1] or '', revision = tonumber(f[2]) or 0, settled = f[3] == '1',
    created_at = tonumber(f[4]) or 0, expires_at = tonumber(f[5]) or 0,
    confirmed_at = tonumber(f[6]) or 0, ended_at = tonumber(f[7]) or 0, reason = f[8] or '',
    plan = f[9] or '', body = f[10] or '',
  }
  orders[key] = order
  return order
end

-- What every answer tells of an order, as msgpack; `engine.order_records` decodes this.
local function describe_order(code, order)
  return array_of(11) .. cmsgpack.pack(code, order.state, order.revision, order.settled,
    order.created_at, order.expires_at, order.confirmed_at, order.ended_at, order.reason)
    .. order.plan .. order.body
end

-- The answer where the step cannot be taken, or nil.
local function refused(order, merchant, fingerprint, revision, state)
  if order.revision == 0 then
    if revision > 0 then return {'not_found'} end
    return nil
  end
  local body = cmsgpack.unpack(order.body)
  if body[BODY_MERCHANT] ~= merchant then return {'not_found'} end
  if revision == 0 then
    if body[BODY_FINGERPRINT] ~= fingerprint then return {'key_reused'} end
    return describe_order('replayed', order)
  end
  if revision ~= order.revision or not MAY_BECOME[order.state][state] then
    return describe_order('order_changed', order)
  end
  return nil
end

local replies = each_command(function(first, _, id, merchant, actor, fingerprint, step, revision,
    state, settled, ttl_ms, due_in_ms, reason, plan, body, ref)
  local order = order_at(KEYS[first])
  local answer = refused(order, merchant, fingerprint, revision, state)
  if answer then return answer end
  if revision == 0 then
    if state ~= 'placing' or body == '' then return {'invalid', 'state'} end
    order.created_at, order.body = now, body
  end
  for i = 1, 3 do need_sorted_set(KEYS[first + i]) end

  local before = order.state
  order.id, order.ref, order.first = id, ref, first
  order.revision = revision + 1
  order.state, order.settled, order.reason, order.plan = state, settled, reason, plan
  if ttl_ms > 0 then order.expires_at = now + ttl_ms end
  if state == 'confirmed' and order.confirmed_at == 0 then order.confirmed_at = now end
  if not ENDED[state] then order.ended_at = 0 end
  if ENDED[state] and not ENDED[before] then order.ended_at = now end
  order.due_at = now + due_in_ms
  if state == 'held' and settled then order.due_at = order.expires_at end
  if not order.touched then
    order.touched = true
    touched_orders[#touched_orders + 1] = order
  end
  record_packed(array_of(8) .. cmsgpack.pack('order', id, merchant, '', actor, fingerprint)
    .. array_of(0) .. array_of(13) .. cmsgpack.pack(step, before, state, order.revision, settled,
    order.expires_at, order.confirmed_at, order.ended_at, order.due_at, reason) .. plan
    .. (revision == 0 and body or array_of(0)) .. cmsgpack.pack(ref))
  return describe_order('ok', order)
end)

local function write_orders()
  for i = 1, #touched_orders do
    local order = touched_orders[i]
    redis.call('HSET', order.key, 'state', order.state, 'revision', integer(order.revision),
      'settled', order.settled and '1' or '0', 'created_at', integer(order.created_at),
      'expires_at', integer(order.expires_at), 'confirmed_at', integer(order.confirmed_at),
      'ended_at', integer(order.ended_at), 'reason', order.reason, 'plan', order.plan,
      'body', order.body)
    redis.call('ZADD', KEYS[order.first + 3], integer(order.due_at), order.id)
    if order.ref ~= '' then
      redis.call('ZADD', KEYS[order.first + 1], integer(order.created_at), order.id)
      redis.call('ZADD', KEYS[order.first + 2], '0', order.ref)
    end
  end
end

-- After this point nothing may fail.
write_orders()
write_ledger()
return table.concat(replies)
