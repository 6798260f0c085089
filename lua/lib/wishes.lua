-- Wishes: lines of a promise that others may stand for, and kits; see engine/wishes.py.
--
-- A wish      {sku, quantity, whole, approve, {candidate, ...}}; the first candidate is the SKU
-- A candidate {of, for, approval, kind, {{sku, place, units}, ...}, most}: the rows that one unit of
--             it takes units of, by their place among the command's rows. kind '' is the SKU itself,
--             'kit' its components, 'substitute' what may stand for it. `most`, if it is there, is
--             how many units of it may be taken at all.
-- Wishes are served one after the other: those that nothing may stand for, then those that can be
-- served as they were asked for, then the rest. So nothing that was asked for by name is
-- handed to somebody who asked for something else.
-- @include choices

local WISH_SKU, WISH_QUANTITY, WISH_WHOLE, WISH_APPROVE, WISH_CANDIDATES = 1, 2, 3, 4, 5
local CANDIDATE_OF, CANDIDATE_FOR, CANDIDATE_APPROVAL, CANDIDATE_KIND, CANDIDATE_PARTS,
  CANDIDATE_MOST = 1, 2, 3, 4, 5, 6
local PART_SKU, PART_PLACE, PART_UNITS = 1, 2, 3

-- Units of a candidate that no wish of the command has taken: `measure` is 'shelf' or 'most', as
-- room_of() has them. A kit has as many as its scarcest component allows. A substitute must be on
-- the shelf: nobody waits for what they did not ask for. The second is what there is not more for,
-- as room_of() has it: the buyer's cap only where nothing else is as scarce.
local function room_for(candidate, wanted, measure)
  local room, limited_by = candidate[CANDIDATE_MOST], nil
  if candidate[CANDIDATE_KIND] == 'substitute' then measure = 'shelf' end
  for _, part in ipairs(candidate[CANDIDATE_PARTS]) do
    local line = wanted[part[PART_PLACE]]
    local units = math.floor(math.max(0, line.room[measure] - line.quantity) / part[PART_UNITS])
    if not room or units < room or (units == room and limited_by == 'buyer') then
      room, limited_by = units, line.room.limited_by
      if limited_by == 'buyer' and line.room[measure] < line.room.most then limited_by = 'stock' end
    end
  end
  return room, limited_by
end

local serve
do
  -- What there is not more for to serve a wish: the buyer's cap or the channel's pool where one of
  -- them is what bounds something that may serve it.
  local function limit_of(wish, wanted)
    local limit = 'stock'
    for _, candidate in ipairs(wish[WISH_CANDIDATES]) do
      local _, limited_by = room_for(candidate, wanted, 'most')
      if limited_by == 'buyer' then return limited_by end
      limit = limited_by == 'channel' and limited_by or limit
    end
    return limit
  end

  local function measured(wish, wanted, measure)
    local candidates = {}
    for i, candidate in ipairs(wish[WISH_CANDIDATES]) do
      candidates[i] = {
        room = room_for(candidate, wanted, measure),
        of = candidate[CANDIDATE_OF],
        for_ = candidate[CANDIDATE_FOR],
      }
    end
    return candidates
  end

  -- What serves a wish: what lies on the shelves, and only where that does not do, what may be
  -- promised before it has come.
  local function choice_for(wish, wanted, partial)
    local quantity, whole = wish[WISH_QUANTITY], wish[WISH_WHOLE]
    return choose(quantity, measured(wish, wanted, 'shelf'), whole, false)
      or choose(quantity, measured(wish, wanted, 'most'), whole, partial)
  end

  local function can_be_served(wish, wanted)
    local candidates, most, all = measured(wish, wanted, 'most'), 0, 0
    for _, candidate in ipairs(candidates) do
      local served = most_served(candidate)
      most, all = math.max(most, served), all + served
    end
    return wish[WISH_WHOLE] and most or all
  end

  -- True where the location has the row of what is asked for, or those of a kit's components.
  local function is_known(wish, wanted)
    for _, candidate in ipairs(wish[WISH_CANDIDATES]) do
      local has_rows = candidate[CANDIDATE_KIND] ~= 'substitute'
      for _, part in ipairs(candidate[CANDIDATE_PARTS]) do
        has_rows = has_rows and wanted[part[PART_PLACE]].row.exists
      end
      if has_rows then return true end
    end
    return false
  end

  -- Adds to the rows what a choice takes of them. Returns how much of the wish that serves.
  local function take_choice(wish, choice, wanted, outcome)
    local all_served, is_proposed = 0, false
    for i, candidate in ipairs(wish[WISH_CANDIDATES]) do
      local units, served, kind = choice[i][1], choice[i][2], candidate[CANDIDATE_KIND]
      all_served = all_served + served
      for _, part in ipairs(units > 0 and candidate[CANDIDATE_PARTS] or {}) do
        local line, of = wanted[part[PART_PLACE]], candidate[CANDIDATE_OF]
        line.quantity = line.quantity + units * part[PART_UNITS]
        if kind == 'kit' then of = part[PART_UNITS] end
        if kind ~= '' then
          outcome.stands_for[#outcome.stands_for + 1] = {wish[WISH_SKU], part[PART_SKU],
            units * part[PART_UNITS], served, of, candidate[CANDIDATE_FOR], kind}
        end
      end
      if units > 0 and kind == 'substitute' then
        outcome.is_substituted = true
        is_proposed = is_proposed or wish[WISH_APPROVE] or candidate[CANDIDATE_APPROVAL]
      end
    end
    if is_proposed then outcome.proposed[#outcome.proposed + 1] = wish[WISH_SKU] end
    return all_served
  end

  serve = function(wish, wanted, partial, outcome)
    local quantity = wish[WISH_QUANTITY]
    local choice = choice_for(wish, wanted, partial)
    if not choice or can_be_served(wish, wanted) < quantity then
      outcome.short[#outcome.short + 1] =
        {wish[WISH_SKU], quantity, can_be_served(wish, wanted), is_known(wish, wanted),
          limit_of(wish, wanted)}
    end
    if choice then
      local served = take_choice(wish, choice, wanted, outcome)
      if served < quantity then
        outcome.missing[#outcome.missing + 1] = {wish[WISH_SKU], quantity - served}
      end
    end
  end
end

-- In which turn a wish is served.
local function turn_of(wish, wanted)
  local own, has_substitutes = 0, false
  for _, candidate in ipairs(wish[WISH_CANDIDATES]) do
    if candidate[CANDIDATE_KIND] == 'substitute' then
      has_substitutes = true
    else
      own = own + room_for(candidate, wanted, 'shelf')
    end
  end
  if not has_substitutes then return 1 end
  return own >= wish[WISH_QUANTITY] and 2 or 3
end

-- Says of each row in `wanted` how many units are taken of it. Returns the wishes that cannot be
-- served as `short`, and what will be `missing`, of what `stands_for` what, and which wishes are
-- `proposed` to whoever has to accept that.
local function serve_wishes(wishes, wanted, partial)
  local outcome = {short = {}, missing = {}, stands_for = {}, proposed = {}, is_substituted = false}
  local served = {}
  for turn = 1, 3 do
    for i, wish in ipairs(wishes) do
      if not served[i] and turn_of(wish, wanted) <= turn then
        served[i] = true
        serve(wish, wanted, partial, outcome)
      end
    end
  end
  return outcome
end

-- What wishes may take of rows whose units are elsewhere, or may be: all that they may take.
local function wishes_elsewhere(wishes, wanted)
  local elsewhere = {}
  for place, line in ipairs(wanted) do
    local units = 0
    for _, wish in ipairs(wishes) do
      for _, candidate in ipairs(wish[WISH_CANDIDATES]) do
        for _, part in ipairs(candidate[CANDIDATE_PARTS]) do
          if part[PART_PLACE] == place then
            units = units + wish[WISH_QUANTITY] * part[PART_UNITS]
          end
        end
      end
    end
    if line.row.spread.away > 0 then elsewhere[#elsewhere + 1] = {line.sku, units} end
  end
  return elsewhere
end
