-- Choosing: how many units of which candidates serve a wish for units of one SKU.
--
-- A candidate is {room, of, for_}: `of` units of it stand for `for_` units of the SKU, so x units
-- serve floor(x * for_ / of) of them, and there are `room` units. The first candidate is mostly the
-- SKU itself, 1 for 1. A choice is a list of {units, served}, one for each candidate.
--
-- The rule: no fewer than were asked for; of all ways to do that the one with the fewest extra
-- units; of these the one that has the most served by the first candidate, then by the second, and
-- so on. `whole` has one candidate serve all of it. docs/concepts/substitutes-and-kits.md says it
-- in words, and a test compares it with trying everything.

-- What is only used here is in a block of its own: outside of blocks a script may have 200 local
-- names.
local choose, most_served
do
  local function served_by(candidate, units)
    return math.floor(units * candidate.for_ / candidate.of)
  end

  -- The fewest units that serve so many.
  local function units_for(candidate, served)
    return math.ceil(served * candidate.of / candidate.for_)
  end

  most_served = function(candidate)
    return served_by(candidate, candidate.room)
  end

  -- The candidate that serves all of it with the fewest extra units; nil where none can.
  local function choose_one(quantity, candidates)
    local best, fewest
    for i, candidate in ipairs(candidates) do
      local units = units_for(candidate, quantity)
      if units <= candidate.room then
        local extra = served_by(candidate, units) - quantity
        if not fewest or extra < fewest then best, fewest = i, extra end
      end
    end
    return best
  end

  -- Takes from the first candidate what it can serve, then from the next. Returns what each serves
  -- and the extra units, which only the last may have; nil where all of them together serve too
  -- few.
  local function choose_in_order(quantity, candidates)
    local served, left = {}, quantity
    for i, candidate in ipairs(candidates) do
      served[i] = 0
      if left > 0 then
        served[i] = served_by(candidate, math.min(candidate.room, units_for(candidate, left)))
        left = left - served[i]
      end
    end
    if left > 0 then return nil end
    return served, -left
  end

  -- Of each candidate and those after it, which numbers up to `most` they can serve exactly.
  --
  -- Each round of a ratio serves as many, so what a candidate adds is some rounds and a rest of
  -- fewer units than a round has. `rounds[t]` is by how few rounds t is past what the others can serve.
  local function servable(candidates, most)
    local exactly = {[#candidates + 1] = {[0] = true}}
    for i = #candidates, 1, -1 do
      local candidate, after, reached, rounds = candidates[i], exactly[i + 1], {}, {}
      -- Where a unit serves one at most, some number of units serves each number.
      local is_fine = candidate.of >= candidate.for_
      local round = is_fine and 1 or candidate.for_
      for t = 0, most do
        if after[t] then
          rounds[t] = 0
        elseif t >= round and rounds[t - round] then
          rounds[t] = rounds[t - round] + 1
        end
      end
      for rest = 0, is_fine and 0 or candidate.of - 1 do
        local served, most_rounds = served_by(candidate, rest), most_served(candidate)
        if not is_fine then most_rounds = math.floor((candidate.room - rest) / candidate.of) end
        for t = served, most do
          local needed = rounds[t - served]
          if needed and needed <= most_rounds then reached[t] = true end
        end
      end
      exactly[i] = reached
    end
    return exactly
  end

  -- The most that a candidate can serve so that those after it can serve the rest of `total`
  -- exactly.
  local function most_towards(total, candidate, after)
    if candidate.of >= candidate.for_ then
      local served = math.min(total, most_served(candidate))
      while not after[total - served] do served = served - 1 end
      return served
    end
    local units = math.min(candidate.room, units_for(candidate, total))
    while not after[total - served_by(candidate, units)] do units = units - 1 end
    return served_by(candidate, units)
  end

  local function choose_some(quantity, candidates)
    local served, extra = choose_in_order(quantity, candidates)
    if not served or extra == 0 then return served end
    local exactly = servable(candidates, quantity + extra)
    local total = quantity
    while not exactly[1][total] do total = total + 1 end
    for i, candidate in ipairs(candidates) do
      served[i] = most_towards(total, candidate, exactly[i + 1])
      total = total - served[i]
    end
    return served
  end

  -- What the candidates can serve of what they cannot serve whole.
  local function most_of(candidates, whole)
    local served, best = {}, 1
    for i, candidate in ipairs(candidates) do
      served[i] = most_served(candidate)
      if served[i] > served[best] then best = i end
    end
    for i = 1, #candidates do
      if whole and i ~= best then served[i] = 0 end
    end
    return served
  end

  -- Returns the choice, or nil where the candidates cannot serve so many. With `partial` it is then
  -- what they can serve.
  choose = function(quantity, candidates, whole, partial)
    local served
    if whole then
      local one = choose_one(quantity, candidates)
      if one then
        served = {}
        for i = 1, #candidates do served[i] = i == one and quantity or 0 end
      end
    else
      served = choose_some(quantity, candidates)
    end
    if not served then
      if not partial then return nil end
      served = most_of(candidates, whole)
    end
    local choice, extra = {}, -quantity
    for i, candidate in ipairs(candidates) do
      choice[i] = {units_for(candidate, served[i]), served[i]}
      extra = extra + served[i]
    end
    -- What is extra serves nobody: the last of those that serve is said to serve less.
    for i = #candidates, 1, -1 do
      local over = math.min(choice[i][2], math.max(0, extra))
      choice[i][2], extra = choice[i][2] - over, extra - over
    end
    return choice
  end
end
