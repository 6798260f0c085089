-- Settings: how a verb that sets something of a row ends.
-- @include seen
-- @include listing

-- Records the one line of the row that the verb is about, and remembers its answer. Returns that:
-- {'ok', at, sequence, version, on_hand, reserved, safety_stock, deficit, ...}, the rest as
-- add_settings() has it.
local function record_setting(kind, row, line, record_key, id, merchant, location, actor, fingerprint,
    detail)
  local at_sequence = record(kind, id, merchant, location, actor, fingerprint, {line}, detail)
  local reply = {'ok', now, at_sequence, row.version, row.on_hand, row.reserved, row.safety_stock,
    row.deficit}
  add_settings(reply, row)
  remember(record_key, fingerprint, reply)
  return reply
end
