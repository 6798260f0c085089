-- Idempotency records of the commands that leave no reservation behind: what a key was used for,
-- and what was answered. Written in the script that has the effect; a refusal leaves none.
--
-- String: msgpack {fingerprint, reply}, kept for limits.retention_ms unless its writer says longer.

local records, new_records = {}, {}

-- The reply to give without doing anything, or nil where the key is new.
local function seen_reply(key, fingerprint)
  local record = records[key]
  if not record then
    local text = redis.call('GET', key)
    if not text then return nil end
    record = cmsgpack.unpack(text)
    records[key] = record
  end
  if record[1] ~= fingerprint then return {'key_reused'} end
  local reply = {'replayed'}
  for i = 2, #record[2] do reply[i] = record[2][i] end
  return reply
end

local function remember(key, fingerprint, reply, keep_ms)
  local record = {fingerprint, reply}
  records[key] = record
  new_records[#new_records + 1] = {key, record, keep_ms or limits.retention_ms}
end

local function write_seen()
  for i = 1, #new_records do
    redis.call('SET', new_records[i][1], cmsgpack.pack(new_records[i][2]),
      'PX', integer(new_records[i][3]))
  end
end
