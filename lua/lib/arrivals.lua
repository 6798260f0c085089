-- Arrivals: supplies that are announced, moved, cancelled, and come; see supplies.lua.
-- @include supplies

local function supply_of(row, ref)
  return row.terms and row.terms.supplies and row.terms.supplies[ref]
end

-- The names of the supplies that a row expects.
local function expected_refs(row)
  local refs = {}
  for ref in pairs(row.terms and row.terms.supplies or {}) do refs[#refs + 1] = ref end
  return refs
end

-- Has so many units of a supply be still to come, on a day; none ends it. The terms as they were may
-- be part of an answer that is yet to be remembered, so they are copied.
local function set_supply(row, ref, day, units)
  row.terms = copied(row.terms)
  local supplies = copied(row.terms.supplies)
  supplies[ref] = units > 0 and {day, units} or nil
  row.terms.supplies = next(supplies) and supplies or nil
  end_empty_terms(row)
  row.changes_terms = true
end

-- Whether a movement of a kind may be the arrival of a supply.
local function comes_with_supply(kind)
  return kind == 'receive' or kind == 'transfer_in'
end

-- Takes what has come off its supply; more may have come than was expected.
local function take_from_supply(row, ref, units)
  local supply = supply_of(row, ref)
  set_supply(row, ref, supply[SUPPLY_DAY], math.max(0, supply[SUPPLY_UNITS] - units))
end
