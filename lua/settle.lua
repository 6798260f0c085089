#!lua flags=allow-oom
-- settle: have a claim say what its reservation holds, or of one that has ended, what was picked.
--
-- Command {id, merchant, actor, location, buyer, member, revision, lines, ended_at, ended_ago,
--          expires_at}
--   id, location, buyer, member  as for `claim`
--   revision    of the claim that the caller saw, 0 where it saw none. Of a reservation that has ended
--               ANY: whatever is under way for it comes to nothing
--   lines       {{sku, units, window_ms}, ...} that it holds, or that were picked
--   ended_at    0 while it holds units
--   ended_ago   how long ago that was by the clock of its location, 0 for just now
--   expires_at  when it expires by itself; 0 where it does not
-- Keys     claims of the buyer, index of claims to look at
-- Returns  {'ok', revision}  0 where there is no claim any more
--          {'replayed'}      there was nothing to settle
--          {'not_due', revision}  somebody else has written the claim since
-- Ledger   settle, detail {buyer, claim, picked as, picked}: the claim from here on, empty where
--          it is gone, and under which name what was picked counts from here on, both empty where
--          nothing does
-- @include group
-- @include ledger
-- @include claims

local ANY = -1

-- What counts of a reservation that holds `lines`, or of which they were picked `since` when; nil for
-- nothing.
local function lines_that_count(lines, ended_at, since)
  local counting = {}
  for _, line in ipairs(lines) do
    local sku, units, window_ms = line[1], line[2], line[3]
    local until_ms = ended_at > 0 and since + window_ms or 0
    if units > 0 and (ended_at == 0 or until_ms > now) then
      counting[sku] = {units, window_ms, until_ms}
    end
  end
  return next(counting) and counting
end

local function due_at(expires_at)
  local latest = now + limits.claim_look_ms
  if expires_at == 0 then return latest end
  return math.max(now, math.min(expires_at, latest)) + LOOK_AFTER_MS
end

local replies = each_command(function(first, _, id, merchant, actor, location, buyer, member,
    revision, lines, ended_at, ended_ago, expires_at)
  local claims = claims_at(KEYS[first])
  local own = claims.entries[id]
  -- The location's clock may be behind, and the window is not shorter for it. What was settled before has
  -- no claim, and does not begin anew.
  local since = own and math.max(ended_at, now - ended_ago) or ended_at
  local counting = lines_that_count(lines, ended_at, since)
  local is_at = own and own[CLAIM_REVISION] or 0
  if revision ~= ANY and revision ~= is_at then return {'not_due', is_at} end
  local entry, name, picked = nil, '', nil
  if ended_at > 0 and counting then
    name = id .. '@' .. integer(ended_at)
    picked = {location, counting, '', 0, 0, 0, true}
    if claims.entries[name] then name, picked = '', nil end
  elseif counting then
    local beside = own and claims.entries[own[CLAIM_BESIDE]] and own[CLAIM_BESIDE] or ''
    entry = {location, counting, beside, sequence + #operations + 1, 0, due_at(expires_at), true}
  end
  set_due(KEYS[first + 1], member, entry)
  if not own and not entry and not picked then return {'replayed'} end

  set_claim(claims, id, entry)
  -- What is beside nothing any more counts alone, also should the id be used again.
  if not entry then
    for _, other in pairs(claims.entries) do
      if other[CLAIM_BESIDE] == id then other[CLAIM_BESIDE] = '' end
    end
  end
  if picked then set_claim(claims, name, picked) end
  record('settle', id, merchant, '', actor, '', {}, {buyer, entry or {}, name, picked or {}})
  return {'ok', entry and entry[CLAIM_REVISION] or 0}
end)

-- After this point nothing may fail.
write_claims()
write_ledger()
return table.concat(replies)
