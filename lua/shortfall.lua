#!lua
-- shortfall: put on record that fewer units are there than were promised, or that it is over.
--
-- Command {id, merchant, location, actor, sku, act, how, endangered}
--   act      open (or grown, or shrunk), close
--   how      what made it so: a movement's type, commit, short_pick, release, expire, repair
--   endangered  {{reservation, units, state}, ...}, whose units are not there
-- Keys     row, shortfalls of the partition
-- Returns  {'ok', since, units}     it is on record, with this many units missing; 0: over
--          {'replayed', 0}          there is nothing to put on record: the row says otherwise by now
-- Ledger   shortfall, detail {sku, units, since, how, endangered}
-- @include group
-- @include rows
-- @include ledger

local writes = {}

local replies = each_command(function(first, _, id, merchant, location, actor, sku, act, how,
    endangered)
  local row, key = row_at(KEYS[first]), KEYS[first + 1]
  local units = math.max(0, row.reserved - row.on_hand)
  local text = redis.call('HGET', key, id)
  local known = text and cmsgpack.unpack(text) or {0, 0}
  if known[2] == units or (act == 'close') ~= (units == 0) then return {'replayed', 0} end
  local since = known[1]
  if since == 0 then since = now end
  writes[#writes + 1] = {key, id, units > 0 and {since, units, how, merchant, location, sku}}
  record('shortfall', id, merchant, location, actor, '', {}, {sku, units, since, how, endangered})
  return {'ok', since, units}
end)

local function write_shortfalls()
  for i = 1, #writes do
    local key, id, body = writes[i][1], writes[i][2], writes[i][3]
    if body then
      redis.call('HSET', key, id, cmsgpack.pack(body))
    else
      redis.call('HDEL', key, id)
    end
  end
end

-- After this point nothing may fail.
write_shortfalls()
write_ledger()
return table.concat(replies)
