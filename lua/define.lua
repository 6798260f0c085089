#!lua
-- define: change what a merchant says of its SKUs: what stands for what, what a kit is made of.
--
-- Command {id, merchant, actor, what, revision, definitions}
--   what         substitutes or kits
--   revision     of the merchant's definitions, which these were checked against; 0 without any
--   definitions  {{sku, text}, ...}; '' takes a SKU's definition away
-- Keys     the merchant's definitions of that kind
-- Returns  {'ok', revision}
--          {'version_conflict', revision}   someone else changed them: read and check anew
--          {'invalid', field}
-- Ledger   define, detail {what, revision, definitions}
-- @include group
-- @include ledger

-- The empty field says how often the definitions were changed.
local revisions, writes = {}, {}

local function revision_at(key)
  if not revisions[key] then revisions[key] = tonumber(redis.call('HGET', key, '') or '0') end
  return revisions[key]
end

local replies = each_command(function(first, _, id, merchant, actor, what, expected, definitions)
  local key = KEYS[first]
  if #definitions == 0 then return {'invalid', 'definitions'} end
  for i = 1, #definitions do
    if not is_text(definitions[i][1]) or definitions[i][1] == '' then return {'invalid', 'sku'} end
    if not is_text(definitions[i][2]) then return {'invalid', 'definitions'} end
  end
  local revision = revision_at(key)
  if revision ~= expected then return {'version_conflict', revision} end

  revision = revision + 1
  revisions[key] = revision
  for i = 1, #definitions do
    writes[#writes + 1] = {key, 's' .. definitions[i][1], definitions[i][2]}
  end
  writes[#writes + 1] = {key, '', integer(revision)}
  record('define', id, merchant, '', actor, '', {}, {what, revision, definitions})
  return {'ok', revision}
end)

-- After this point nothing may fail.
for i = 1, #writes do
  local key, field, text = writes[i][1], writes[i][2], writes[i][3]
  if text == '' then
    redis.call('HDEL', key, field)
  else
    redis.call('HSET', key, field, text)
  end
end
write_ledger()
return table.concat(replies)
