-- Claims: what counts for a buyer over all locations of a merchant, all of it in one partition.
--
-- Where a row's cap a buyer is one over the merchant, its units are claimed here before they are
-- promised at the location. A claim goes by the reservation's id, and holds the most that may be
-- promised under it. While it is open (lapses_at > 0) a command that brings it may be under way; the
-- location takes none that has lapsed. So it is made less by nobody but the one who made it and knows
-- what came of it, or once it has lapsed by the location's own clock (see look.lua).
--
-- String of msgpack {name = {location, lines, beside, revision, lapses_at, due_at, is_known}} of one
-- buyer of a merchant; it goes by itself once nothing in it counts. name is the reservation's id, and
-- of what was picked '<id>@<ended_at>', so that an id which is used again counts anew.
--   lines     {sku = {units, window_ms, until}}; until is 0 while they are promised
--   beside    the claim whose place this one takes: as many units as both have count once
--   lapses_at  by the clock of the location
--   revision  sequence of the operation that last wrote it, 0 of what was picked
--   due_at    when somebody should look at it, 0 of what was picked
--   is_known  true once the reservation was seen at its location

local CLAIM_LOCATION, CLAIM_LINES, CLAIM_BESIDE, CLAIM_REVISION, CLAIM_LAPSES_AT, CLAIM_DUE_AT,
  CLAIM_IS_KNOWN = 1, 2, 3, 4, 5, 6, 7
local CLAIMED_UNITS, CLAIMED_WINDOW, CLAIMED_UNTIL = 1, 2, 3

-- Of one buyer: each call reads and writes them all.
local MAX_CLAIMS = 1000

-- Between the end of what a claim waits for and the look at it.
local LOOK_AFTER_MS = 1000

local claims_of_buyers, touched_claims = {}, {}
local due_of_index = {}

local function drop_what_is_over(entries)
  for name, entry in pairs(entries) do
    for sku, line in pairs(entry[CLAIM_LINES]) do
      if line[CLAIMED_UNTIL] > 0 and line[CLAIMED_UNTIL] <= now then
        entry[CLAIM_LINES][sku] = nil
      end
    end
    if not next(entry[CLAIM_LINES]) then entries[name] = nil end
  end
end

-- The claims of a buyer, without what counts no longer.
local function claims_at(key)
  local claims = claims_of_buyers[key]
  if claims then return claims end
  local text = redis.call('GET', key)
  claims = {key = key, entries = text and cmsgpack.unpack(text) or {}}
  drop_what_is_over(claims.entries)
  claims_of_buyers[key] = claims
  return claims
end

local function units_claimed(entry, sku)
  local line = entry and entry[CLAIM_LINES][sku]
  return line and line[CLAIMED_UNITS] or 0
end

-- Units of a SKU that a claim may have in all. As many as it and the claim that it is beside both have
-- count once, and so of those that are beside it; what is beside the same one counts on its own.
local function room_of_claim(entries, id, beside, sku, cap)
  local besides = {}  -- units of the claims that are beside each, without this one
  for name, entry in pairs(entries) do
    local of = entry[CLAIM_BESIDE]
    if name ~= id and of ~= '' then besides[of] = (besides[of] or 0) + units_claimed(entry, sku) end
  end
  local room = cap + (besides[id] or 0)
  for name, entry in pairs(entries) do
    if name ~= id and name ~= beside then
      room = room - math.max(0, units_claimed(entry, sku) - (besides[name] or 0))
    end
  end
  return room
end

local function is_full(claims)
  local count = 0
  for _ in pairs(claims.entries) do count = count + 1 end
  return count >= MAX_CLAIMS
end

local function touch_claims(claims)
  if not claims.touched then
    claims.touched = true
    touched_claims[#touched_claims + 1] = claims
  end
end

-- Has a claim be what `entry` says, or be gone where that is nil.
local function set_claim(claims, name, entry)
  claims.entries[name] = entry
  touch_claims(claims)
end

-- Has a claim be looked at when `entry` says, or no more where that is nil.
local function set_due(index, member, entry)
  need_sorted_set(index)
  due_of_index[index] = due_of_index[index] or {}
  due_of_index[index][member] = entry and integer(entry[CLAIM_DUE_AT]) or false
end

local function write_claims()
  for _, claims in ipairs(touched_claims) do
    local latest, lasts = 0, false
    for _, entry in pairs(claims.entries) do
      for _, line in pairs(entry[CLAIM_LINES]) do
        lasts = lasts or line[CLAIMED_UNTIL] == 0
        latest = math.max(latest, line[CLAIMED_UNTIL])
      end
    end
    write_counting(claims.key, claims.entries, lasts and 0 or latest)
  end
  write_members(due_of_index)
end
