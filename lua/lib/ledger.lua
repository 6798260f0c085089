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

local function record(kind, id, merchant, location, actor, fingerprint, lines, detail)
  -- Fails where the ledger is no stream, while nothing is written yet.
  if #operations == 0 then redis.call('XLEN', LEDGER) end
  operations[#operations + 1] =
    {kind, id, merchant, location, actor, fingerprint, lines, detail}
  return sequence + #operations
end

local function write_ledger()
  if #operations == 0 then return end
  redis.call('XADD', LEDGER, '*', 'seq', integer(sequence + 1), 'at', integer(now),
    'ops', cmsgpack.pack(operations))
  redis.call('HSET', META, 'sequence', integer(sequence + #operations), 'clock_ms', integer(now))
end
