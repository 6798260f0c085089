-- Events that were set aside: known to the sender as taken, and not booked until somebody decides.
--
-- Hash quarantine, from an event's operation id to msgpack {at, why, actor, fingerprint, source,
-- event_id, kind, sku, quantity, occurred_at, sequence, reason, reference, raw, supply}, the last
-- where it names one

local MAX_QUARANTINED = 10000

local quarantines, quarantined = {}, {}

local function quarantine_at(key)
  local quarantine = quarantines[key]
  if not quarantine then
    quarantine = {key = key, size = redis.call('HLEN', key), has = {}}
    quarantines[key] = quarantine
  end
  return quarantine
end

local function is_quarantined(quarantine, id)
  if quarantine.has[id] == nil then
    quarantine.has[id] = redis.call('HEXISTS', quarantine.key, id) == 1
  end
  return quarantine.has[id]
end

local function set_aside(quarantine, id, body)
  quarantine.has[id], quarantine.size = true, quarantine.size + 1
  quarantined[#quarantined + 1] = {quarantine.key, id, body}
end

local function take_out(quarantine, id)
  quarantine.has[id], quarantine.size = false, quarantine.size - 1
  quarantined[#quarantined + 1] = {quarantine.key, id}
end

local function write_quarantines()
  for i = 1, #quarantined do
    local key, id, body = quarantined[i][1], quarantined[i][2], quarantined[i][3]
    if body then
      redis.call('HSET', key, id, cmsgpack.pack(body))
    else
      redis.call('HDEL', key, id)
    end
  end
end
