#!lua flags=allow-oom
-- split: the home of a row that is spread over partitions hears of its parts, changes where promises
-- are made, and grants units (see lib/split.lua).
--
-- Command {id, merchant, location, actor, sku, member, expected, plan, places, reports, grants}
--   member    of the partition's index of split rows
--   expected  epoch that the plan is to follow; if another came first, the plan is not made
--   plan      keep; set (promises are made at `places`, or at home where there are none); close (at
--             no place for now); open
--   places    partitions
--   reports   {{partition, version, received, returned, picked, reserved, heard, departures}, ...} as
--             parts told them
--   grants    {{partition, units}, ...}, each as far as units are free here, in this order
-- Keys     row, recent changes of the row, index of split rows
-- Returns  {'ok', split, free, version, available}   free: what can be promised here, negative where
--            more is promised or kept back than is there; available: in all
--          {'not_found'}                             there is no such row
--          {'limit_exceeded', 'changes', most}       promises were moved that often within a day
--          {'invalid', field}                        terms: a row that has some cannot be split
-- Ledger   split, detail {sku, split, departures}; no row where its totals stay as they are
-- @include group
-- @include rows
-- @include ledger
-- @include asof
-- @include split

local MAX_EARLIER = 8
local new_members = {}

local function wrong_reports(home, reports)
  for _, report in ipairs(reports) do
    if not home.of[report[1]] then return true end
    for i = 2, 7 do
      if not is_integer(report[i], 0, MAX_EXACT) then return true end
    end
    for _, departure in ipairs(report[8]) do
      if not is_integer(departure[1], 1, MAX_EXACT) or not is_integer(departure[2], 1, MAX_TOTAL)
      then
        return true
      end
    end
  end
  return false
end

-- Takes over what a part says of itself if that is news. Adds to `left` when units left the shelf;
-- returns the change of what is reserved.
local function hear_report(cell, report, left)
  local version, received, returned, picked, reserved, heard, departures = unpack(report, 2, 8)
  if version <= cell.version then return 0 end
  local unknown = picked - cell.picked
  for _, departure in ipairs(departures) do
    local units = math.min(unknown, departure[2])
    if units > 0 then left[#left + 1] = {departure[1], units} end
    unknown = unknown - units
  end
  -- What the part has forgotten left long ago; what is unknown without it left by now.
  if unknown > 0 then left[#left + 1] = {now, unknown} end
  local change = reserved - cell.reserved
  -- Units that are there were granted, even if a failover lost the grant.
  cell.granted = math.max(cell.granted, received)
  cell.version, cell.received, cell.returned = version, received, returned
  cell.picked, cell.reserved, cell.heard = picked, reserved, heard
  return change
end

-- Units left the shelf at the parts. What a count has seen gone already changes nothing any more.
-- Returns those that count, as {at, units}, and their sum.
local function count_departures(past, left)
  local counting, sum = {}, 0
  for _, departure in ipairs(left) do
    if departure[1] >= past.counted_at then
      counting[#counting + 1] = departure
      sum = sum + departure[2]
      add_delta(past, departure[1], -departure[2])
    end
  end
  return counting, sum
end

-- Earlier places at which a retry may still look for its answer.
local function earlier_places(home)
  local kept = {}
  for text in string.gmatch(home.was, '[^;]+') do
    local until_ms = tonumber(string.match(text, '^(%d+)@'))
    if until_ms and until_ms + limits.retention_ms > now then kept[#kept + 1] = text end
  end
  return kept
end

-- Makes a plan where it is a new one. Returns false where promises were moved too often for it.
local function make_plan(home, plan, places)
  if plan == 'keep' then return true end
  if plan == 'set' then
    local text = #places > 0 and table.concat(places, ',') or '-'
    local open = #places > 0 and 1 or 0
    if text == home.places then return true end
    local was = earlier_places(home)
    if #was >= MAX_EARLIER then return false end
    was[#was + 1] = integer(now) .. '@' .. home.places
    home.was, home.places, home.open = table.concat(was, ';'), text, open
    for _, partition in ipairs(places) do cell_of(home, partition) end
  else
    local open = plan == 'open' and 1 or 0
    if home.places == '-' or home.open == open then return true end
    home.open = open
  end
  home.epoch = home.epoch + 1
  return true
end

local PLANS = {keep = true, set = true, close = true, open = true}

local function wrong_field(home, plan, places, reports, grants)
  if not PLANS[plan] then return 'plan' end
  for _, partition in ipairs(places) do
    if not is_integer(partition, 0, MAX_QUANTITY) then return 'places' end
  end
  if wrong_reports(home, reports) then return 'reports' end
  for _, grant in ipairs(grants) do
    if not is_integer(grant[1], 0, MAX_QUANTITY) or not is_integer(grant[2], 1, MAX_TOTAL) then
      return 'grants'
    end
  end
end

local function grant_units(home, grants, units)
  local granted = false
  for _, grant in ipairs(grants) do
    local cell = home.of[grant[1]]
    local some = math.min(units, grant[2])
    if cell and some > 0 and home.open == 1 then
      cell.granted = cell.granted + some
      units, granted = units - some, true
    end
  end
  return granted
end

local function describe_home(row)
  return {'ok', row.split or '', unreserved(row), row.version,
    math.max(0, unreserved(row) + row.spread.away)}
end

local replies = each_command(function(first, _, id, merchant, location, actor, sku, member,
    expected, plan, places, reports, grants)
  local row = row_at(KEYS[first])
  if not row.exists then return {'not_found'} end
  if row.spread.is_part then return {'invalid', 'location'} end
  -- Units on terms are promised by their order, and there is none between partitions.
  if row.terms and #places > 0 then return {'invalid', 'terms'} end
  local past = past_of(row, KEYS[first + 1])
  need_sorted_set(KEYS[first + 2])
  local home = home_of(row)
  local bad_field = wrong_field(home, plan, places, reports, grants)
  if bad_field then return {'invalid', bad_field} end
  if expected == home.epoch and not make_plan(home, plan, places) then
    return {'limit_exceeded', 'changes', MAX_EARLIER}
  end

  local left, reserved = {}, 0
  for _, report in ipairs(reports) do
    reserved = reserved + hear_report(home.of[report[1]], report, left)
  end
  local counting, sum = count_departures(past, left)
  local on_hand, deficit = 0, 0
  if sum > 0 then on_hand, deficit = shelf_deltas(row, -sum) end
  local before = row.split or ''
  if not row.split and #home.cells == 0 then return describe_home(row) end
  local was = earlier_places(home)
  home.was = #was > 0 and table.concat(was, ';') or '-'
  -- What is free once the reports are in, as read_split() adds it up.
  read_split(row, home_text(home))
  local units = unreserved(row) + on_hand - reserved
  grant_units(home, grants, units)
  local text = home_text(home)
  if text == before then
    row.split = before
    return describe_home(row)
  end
  set_split(row, text)
  new_members[#new_members + 1] = {KEYS[first + 2], member}
  local lines = {}
  if on_hand ~= 0 or reserved ~= 0 or deficit ~= 0 then
    lines[1] = change_row(row, sku, on_hand, reserved, 0, deficit)
  end
  record('split', id, merchant, location, actor, '', lines, {sku, text, counting})
  return describe_home(row)
end)

-- After this point nothing may fail.
write_rows()
write_splits()
write_pasts()
for i = 1, #new_members do redis.call('ZADD', new_members[i][1], '0', new_members[i][2]) end
write_ledger()
return table.concat(replies)
