-- What the verbs that make reservations share.

-- The body of the reservation at `key`, made in this group or before it; nil where there is none.
local all_are_new = first_keys_are_new()
local bodies = {}
local function body_at(key)
  local body = bodies[key]
  if body or all_are_new then return body end
  return redis.call('HGET', key, 'body') or nil
end

local function earlier_answer(packed_body, who)
  local body = cmsgpack.unpack(packed_body)
  local merchant, location, _, fingerprint = cmsgpack.unpack(who)
  if body[BODY_MERCHANT] ~= merchant or body[BODY_LOCATION] ~= location
    or body[BODY_FINGERPRINT] ~= fingerprint then
    return {'key_reused'}
  end
  return {'replayed', body}
end
