-- The ledger: one stream entry a script, listing every operation of the group.
--
-- Entry   seq  the first operation's sequence; the others follow densely
--         at   milliseconds since 1970, the partition's clock
--         ops  msgpack array of operations
-- An operation is an array:
--   {kind, id, merchant, location, actor, fingerprint, lines, detail}
-- where lines are as `change_row` returns them and detail is the kind's own array
-- (docs/reference/ledger.md names its elements; `engine.ledger` decodes them).

local operations = {}

-- Takes an operation as msgpack. Returns its sequence.
local function record_packed(operation)
  -- Fails where the ledger is no stream, while nothing is written yet.
  if #operations == 0 then redis.call('XLEN', LEDGER) end
  operations[#operations + 1] = operation
  return sequence + #operations
end

-- `lines` are packed already, see rows.lua.
local function record(kind, id, merchant, location, actor, fingerprint, lines, detail)
  return record_packed(array_of(8) .. cmsgpack.pack(kind, id, merchant, location, actor, fingerprint)
    .. array_of(#lines) .. table.concat(lines) .. cmsgpack.pack(detail))
end

local function write_ledger()
  if #operations == 0 then return end
  redis.call('XADD', LEDGER, '*', 'seq', integer(sequence + 1), 'at', integer(now),
    'ops', array_of(#operations) .. table.concat(operations))
  redis.call('HSET', META, 'sequence', integer(sequence + #operations), 'clock_ms', integer(now))
end
