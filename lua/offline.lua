#!lua
-- offline: hold units back from promising while a location's tills are silent, or no longer.
--
-- Command {id, merchant, location, actor, state, since, units}
--   state    of the location: live, degraded or catching_up; since when it is not live, ms
--   units    {{sku, units}, ...} to hold back from now on; 0 for none
-- Keys     what is held back at the location, then the row of each of `units`
-- Returns  {'ok', changed}    how many rows hold back another number of units now
--          {'invalid', field}
-- Ledger   offline, detail {state, since, units, state before}
-- @include group
-- @include rows
-- @include ledger

local writes = {}

local replies = each_command(function(first, _, id, merchant, location, actor, state, since, units)
  local key = KEYS[first]
  local before = redis.call('HGET', key, '')
  local lines, changed = {}, {}
  for i = 1, #units do
    local sku, held_back = units[i][1], units[i][2]
    if not is_integer(held_back, 0, MAX_TOTAL) then return {'invalid', 'units'} end
    local row = row_at(KEYS[first + i])
    if row.exists and row.offline_buffer ~= held_back then
      local change = held_back - row.offline_buffer
      lines[#lines + 1] = change_row(row, sku, 0, 0, 0, 0, nil, change)
      changed[#changed + 1] = {sku, held_back}
      writes[#writes + 1] = {row.key, 'offline_buffer', held_back}
      writes[#writes + 1] = {key, 's' .. sku, held_back}
    end
  end
  local told = state .. ' ' .. integer(since)
  if #changed == 0 and (before or 'live 0') == told then return {'ok', 0} end
  writes[#writes + 1] = {key, '', state ~= 'live' and told or 0}
  record('offline', id, merchant, location, actor, '', lines,
    {state, since, changed, string.match(before or 'live', '^%a+_?%a*')})
  return {'ok', #changed}
end)

local function write_buffers()
  for i = 1, #writes do
    local key, field, value = writes[i][1], writes[i][2], writes[i][3]
    if value == 0 then
      redis.call('HDEL', key, field)
    else
      redis.call('HSET', key, field, type(value) == 'number' and integer(value) or value)
    end
  end
end

-- After this point nothing may fail.
write_rows()
write_buffers()
write_ledger()
return table.concat(replies)
