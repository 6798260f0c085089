#!lua
-- claim: take units for a buyer whose cap is one over all locations, before they are promised.
--
-- Command {id, merchant, actor, location, buyer, member, beside, after, ahead_ms, wanted}
--   id       of the reservation that the units are for, at `location`
--   buyer    digest of who they are for
--   member   of the claim in the index of those to look at
--   beside   id whose claim this one takes the place of, or ''
--   after    revision of the claim that the same caller made just now, or 0
--   ahead_ms  by how much the location's clock is ahead of this partition's
--   wanted   {{sku, units, cap, window_ms, takes_less}, ...}: so many of each in all, of at most
--            `cap`; with takes_less what the buyer may still have of it
-- Keys     claims of the buyer, index of claims to look at
-- Returns  {'ok', revision, alone, lapses_at, {units, ...}}  that the reservation may have of each of
--            `wanted` until then, by the clock of its location. What it has already it keeps. alone
--            is true where no other command may be under way for it; revision is 0 where there was
--            nothing to take
--          {'buyer_cap_exceeded', false, {{sku, requested, room, true, 'buyer'}, ...}}
--          {'limit_exceeded', 'buyer', most}  so many claims of one buyer count already
--          {'invalid', field}
-- Ledger   claim, detail {buyer, claim, picked as, picked}, the last two empty
-- @include group
-- @include ledger
-- @include claims

-- How many units of each of `wanted` the claim gets, and the lines that get less.
local function granted_units(claims, id, beside, wanted)
  local granted, short, own = {}, {}, claims.entries[id]
  for i, one in ipairs(wanted) do
    local sku, units, cap, window_ms, takes_less = unpack(one, 1, 5)
    if not is_text(sku) then return nil, 'sku' end
    if not is_integer(units, 0, MAX_QUANTITY) then return nil, 'quantity' end
    if not is_integer(cap, 1, MAX_QUANTITY) or not is_integer(window_ms, 1, MAX_EXACT) then
      return nil, 'buyer_cap'
    end
    local has = units_claimed(own, sku)
    local most = math.max(has, room_of_claim(claims.entries, id, beside, sku, cap))
    if units > most and not takes_less then
      short[#short + 1] = {sku, units, most, true, 'buyer'}
    end
    granted[i] = math.max(has, math.min(units, most))
  end
  return granted, short
end

local replies = each_command(function(first, _, id, merchant, actor, location, buyer, member, beside,
    after, ahead_ms, wanted)
  local claims = claims_at(KEYS[first])
  local own = claims.entries[id]
  if beside == '' and own then beside = own[CLAIM_BESIDE] end
  if not claims.entries[beside] then beside = '' end
  local granted, short = granted_units(claims, id, beside, wanted)
  if not granted then return {'invalid', short} end
  if #short > 0 then return {'buyer_cap_exceeded', false, short} end
  if not own and is_full(claims) then return {'limit_exceeded', 'buyer', MAX_CLAIMS} end

  local lapses_at, lines = now + limits.claim_ms + ahead_ms, {}
  for sku, line in pairs(own and own[CLAIM_LINES] or {}) do lines[sku] = line end
  for i, one in ipairs(wanted) do
    if granted[i] > 0 then lines[one[1]] = {granted[i], one[4], 0} end
  end
  if not next(lines) then return {'ok', 0, true, lapses_at, granted} end
  local revision = sequence + #operations + 1
  -- An earlier command may be under way with a later end: the claim is open for both.
  local open_until = math.max(lapses_at, own and own[CLAIM_LAPSES_AT] or 0)
  local entry = {location, lines, beside, revision, open_until,
    now + limits.claim_ms + LOOK_AFTER_MS, own ~= nil and own[CLAIM_IS_KNOWN]}
  set_claim(claims, id, entry)
  set_due(KEYS[first + 1], member, entry)
  record('claim', id, merchant, '', actor, '', {}, {buyer, entry, '', {}})
  local alone = own == nil or own[CLAIM_LAPSES_AT] == 0 or own[CLAIM_REVISION] == after
  return {'ok', revision, alone, lapses_at, granted}
end)

-- After this point nothing may fail.
write_claims()
write_ledger()
return table.concat(replies)
