#!lua
-- repromise: an amend on terms: of what was promised on terms, or of more units of a row that has
-- some; or of what others stand for, and of kits.
--
-- Command {id, merchant, actor, fingerprint, operation id, wanted, most_lines, reclaimed, plan, ask,
--          seen, skus}
--   wanted, most_lines, reclaimed  as for `amend`; where others stand for a SKU, or it is a kit, its
--            quantity is how much is asked for, by whatever it is served
--   plan     ANYWHERE, or GATHERED once the units of split rows were fetched as far as that could be
--   ask      {promise, channel, buyer, claims, lapses_at, wishes, conflict} as for `promise`. A
--            reservation keeps the channel and the buyer that it has; conflict is which of them the
--            caller says otherwise, if there is one. With wishes there is one for each of `wanted`
--   seen     what stands for what, as the caller knows it
--   skus     the rows of the command
-- Keys     reservation, idempotency record, then of each of `skus` the row and its queue, and where
--          there is a buyer what counts for them of the row
-- Returns  {'ok' | 'replayed', ...reservation}  as it was just after; see describe()
--          {'not_found'}, {'key_reused'}
--          {'ended', ...reservation}      committed, released or expired before
--          {'lines_changed'}              what the caller knows is out of date: read it anew
--          {'insufficient_stock', due, {{sku, requested, room, known, limited by}, ...}}
--          {'buyer_cap_exceeded', due, {{sku, requested, room, known, 'buyer'}, ...}}
--            every line that there is no room for, its own units among the room; as for `promise`
--          {'split', {{sku, units}, ...}}  as for `promise`
--          {'unclaimed', now, {{sku, cap, window_ms}, ...}}  as for `promise`
--          {'limit_exceeded', 'lines', most_lines}
--          {'invalid', field}             buyer: a row has a cap a buyer, and nobody is named;
--            lines: none would be left; or the conflict
--          {'invalid', 'stands_for', sku}  it is wanted, and only stands for another
-- Ledger   as `amend`, with extras and waiting at the end of its detail
-- What is asked for is served anew, as a reserve would serve it now, with the units that it has as
-- free ones: so it is never refused what it has. Fewer units give back those first that nothing has
-- come for. More are promised on the terms that the row has now, and wait behind all others whose
-- turn it is then; of a line that was promised by a day, by that day.
-- @include group
-- @include rows
-- @include ledger
-- @include reservations
-- @include seen
-- @include amending
-- @include room
-- @include wishes

-- True where the caller knows what the reservation is.
local function is_as_seen(reservation, ask, seen)
  local extras = reservation.extras or {}
  local known = extras.stands_for or {}
  if extras.channel and extras.channel ~= ask.channel then return false end
  if extras.buyer and extras.buyer ~= ask.buyer then return false end
  if #known > 0 and not ask.wishes then return false end
  return is_same_list(known, seen)
end

-- The units of each row that serve what is wanted: those are free for it; and how many of them are
-- substitutes, which are on the shelf. Or nil and the SKU that is wanted though nobody asked for it, as
-- it only stands for another.
local function units_freed(reservation, held, units)
  local freed, substitutes, is_served, stand_ins = {}, {}, {}, {}
  for sku in pairs(units) do freed[sku] = held[sku] or 0 end
  for _, one in ipairs(stands_for(reservation) or {}) do
    local asked, sku = one[STANDS_ASKED], one[STANDS_SKU]
    is_served[asked] = true
    if units[sku] then
      freed[sku] = freed[sku] - one[STANDS_UNITS]
      stand_ins[sku] = true
    end
  end
  for sku in pairs(stand_ins) do
    if freed[sku] == 0 and not is_served[sku] then return nil, sku end
  end
  for _, one in ipairs(stands_for(reservation) or {}) do
    local sku = one[STANDS_SKU]
    if units[one[STANDS_ASKED]] then
      freed[sku] = (freed[sku] or 0) + one[STANDS_UNITS]
      if one[STANDS_KIND] == 'substitute' then
        substitutes[sku] = (substitutes[sku] or 0) + one[STANDS_UNITS]
      end
    end
  end
  return freed, substitutes
end

-- Reads the rows of the command, and what room they have for it. nil where one is not declared.
local function rows_of_command(first, reservation, id, ask, skus, held, freed, substitutes)
  local lines, declared = {}, {}
  local keys_of_a_row = ask.buyer == '' and 2 or 3
  for i, sku in ipairs(skus) do
    local at = first + 2 + (i - 1) * keys_of_a_row
    local row = row_at(KEYS[at])
    local waits = reservation.waiting and reservation.waiting[sku]
    local waiting, units_free = waits and waits[WAIT_UNITS] or 0, freed[sku] or 0
    local own = {
      id = id,
      units = held[sku] or 0,
      waiting = waiting,
      wait = waits,
      freed = units_free,
      freed_waiting = math.min(waiting, units_free - (substitutes[sku] or 0)),
      is_pooled = is_pooled(reservation.extras, sku),
    }
    declared[sku] = true
    lines[i] = {row = row, sku = sku, quantity = 0, own = own, queue = KEYS[at + 1],
      count_key = KEYS[at + 2], room = room_beside(row, ask, KEYS[at + 2], own)}
  end
  for sku in pairs(freed) do
    if not declared[sku] then return nil end
  end
  return lines
end

-- Without wishes: says of each row what is wanted of it. Returns what serve_wishes() does.
local function serve_lines(lines, units)
  local outcome = {short = {}, stands_for = {}, proposed = {}}
  for _, line in ipairs(lines) do
    local sku, room = line.sku, line.room
    line.quantity = units[sku]
    if line.quantity > room.most then
      outcome.short[#outcome.short + 1] =
        {sku, line.quantity, room.most, line.row.exists, room.limited_by}
      outcome.needs_buyer = outcome.needs_buyer or room.needs_buyer
    end
  end
  return outcome
end

-- The same of lines that have units elsewhere.
local function lines_elsewhere(lines)
  local elsewhere = {}
  for _, line in ipairs(lines) do
    if line.row.spread.away > 0 and line.quantity > line.room.most then
      elsewhere[#elsewhere + 1] = {line.sku, line.quantity - line.own.units}
    end
  end
  return elsewhere
end

-- The units of each SKU that substitutes hold for others, by what was asked for.
local function substituted(list, members)
  local units = {}
  for _, one in ipairs(list) do
    local asked, sku = one[STANDS_ASKED], one[STANDS_SKU]
    if members[asked] and one[STANDS_KIND] == 'substitute' then
      units[asked] = units[asked] or {}
      units[asked][sku] = (units[asked][sku] or 0) + one[STANDS_UNITS]
    end
  end
  return units
end

-- Where one of `after` has more units than `before`, or another.
local function has_more(before, after)
  for sku, units in pairs(after) do
    if units > (before and before[sku] or 0) then return true end
  end
  return false
end

-- Whether more units of a substitute are handed over than before for some SKU.
local function substitutes_more(reservation, outcome, units)
  local before = substituted(stands_for(reservation) or {}, units)
  for asked, after in pairs(substituted(outcome.stands_for, units)) do
    if has_more(before[asked], after) then return true end
  end
  return false
end

-- Has the extras say what stands for what from now on, and what somebody has to accept: what was
-- proposed and still stands for something, and what more units stand for than before.
local function note_stand_ins(extras, reservation, outcome, units)
  local before = substituted(extras.stands_for or {}, units)
  local after = substituted(outcome.stands_for, units)
  local kept, open, is_open = {}, {}, {}
  for _, one in ipairs(extras.stands_for or {}) do
    if not units[one[STANDS_ASKED]] then kept[#kept + 1] = one end
  end
  for _, one in ipairs(outcome.stands_for) do kept[#kept + 1] = one end
  for _, sku in ipairs(extras.proposed or {}) do
    if not units[sku] or after[sku] then
      open[#open + 1], is_open[sku] = sku, true
    end
  end
  local decided = {}
  for sku, decision in pairs(extras.decided or {}) do decided[sku] = decision end
  for _, sku in ipairs(outcome.proposed) do
    if not is_open[sku] and has_more(before[sku], after[sku]) then
      open[#open + 1] = sku
      decided[sku] = nil
    end
  end
  extras.stands_for = #kept > 0 and kept or nil
  extras.proposed = #open > 0 and open or nil
  extras.decided = next(decided) and decided or nil
end

-- The extras that a reservation begins with to be amended. What is empty at the end is left out.
local function copied_extras(reservation, ask)
  local extras = {channel = ask.channel, pooled = {}, capped = {}, claimed = {}}
  local before = reservation.extras or {}
  for name, value in pairs(before) do
    if not extras[name] then extras[name] = value end
  end
  for i, sku in ipairs(before.pooled or {}) do extras.pooled[i] = sku end
  for sku, window_ms in pairs(before.capped or {}) do extras.capped[sku] = window_ms end
  for sku, window_ms in pairs(before.claimed or {}) do extras.claimed[sku] = window_ms end
  extras.first = first_told(reservation)
  return extras
end

local function without_empty(extras)
  if #extras.pooled == 0 then extras.pooled = nil end
  if not next(extras.capped) then extras.capped = nil end
  if not next(extras.claimed) then extras.claimed = nil end
  return extras
end

-- Has no more units of a line held than before, and no more of them wait. One that is dropped counts
-- no longer. Returns the ledger's line.
local function give_back(reservation, id, extras, line, units, unfilled)
  local row, sku, own = line.row, line.sku, line.own
  local fewer, come = own.units - units, own.waiting - unfilled
  if reservation.extras then
    count_less(reservation, id, row, sku, fewer, units, false, {line.queue, line.count_key})
  end
  if come > 0 then wait_less(reservation, id, row, sku, come, line.queue) end
  if units == 0 then
    local pooled = {}
    for _, one in ipairs(extras.pooled) do
      if one ~= sku then pooled[#pooled + 1] = one end
    end
    extras.pooled, extras.capped[sku], extras.claimed[sku] = pooled, nil, nil
  end
  return change_row(row, sku, 0, come - fewer, 0, 0, nil, come > 0 and 0 or nil,
    come > 0 and -come or nil)
end

-- Has more units of a line held, and all of it on the terms that the row has now. Where it waits for
-- more than before, it does so behind all others. Returns the ledger's line.
local function take_more(reservation, id, ask, extras, line, units, unfilled)
  local row, sku, own = line.row, line.sku, line.own
  local terms, waits = row.terms or {}, unfilled - own.waiting
  if terms.channels and terms.channels[extras.channel] then
    count_in_pool(row, extras.channel, own.is_pooled and units - own.units or units)
    if not own.is_pooled then extras.pooled[#extras.pooled + 1] = sku end
  end
  if terms.buyer_cap then
    local counted = claim_of(row, ask) and extras.claimed or extras.capped
    extras.buyer, counted[sku] = ask.buyer, terms.buyer_cap.window_ms
  end
  if extras.capped[sku] then count_for_buyer(count_of(line.count_key), id, units, 0) end
  if waits > 0 then
    if own.wait then count_waits(row, own.wait, -own.waiting) end
    local entry = new_wait(row, line.room, unfilled, row.version + 1)
    count_waits(row, entry, unfilled)
    wait_in_queue(line.queue, id, entry)
    reservation.waiting[sku] = entry
  elseif waits < 0 then
    wait_less(reservation, id, row, sku, -waits, line.queue)
  end
  return change_row(row, sku, 0, units - own.units - waits, 0, 0, nil, waits ~= 0 and 0 or nil,
    waits ~= 0 and waits or nil)
end

-- Has a reservation hold so many units of each row. Fewer of a row give back those first that nothing
-- has come for. Returns the ledger's lines, and whether more is promised of a row that has terms.
local function hold(reservation, id, ask, extras, lines, totals)
  local changes, on_terms = {}, false
  for _, line in ipairs(lines) do
    local units, own = totals[line.sku], line.own
    local unfilled = own.waiting - own.freed_waiting + math.max(0, line.quantity - line.room.shelf)
    if units > own.units then
      on_terms = on_terms or line.row.terms ~= nil
      changes[#changes + 1] = take_more(reservation, id, ask, extras, line, units, unfilled)
    else
      unfilled = math.min(unfilled, math.max(0, own.waiting - (own.units - units)))
      if units < own.units or unfilled < own.waiting then
        changes[#changes + 1] = give_back(reservation, id, extras, line, units, unfilled)
      end
    end
  end
  return changes, on_terms
end

local replies = each_command(function(first, _, id, merchant, actor, fingerprint, operation, wanted,
    most_lines, reclaimed, plan, ask, seen, skus)
  local reservation = reservation_of(KEYS[first], merchant)
  if not reservation then return {'not_found'} end
  local earlier = seen_reply(KEYS[first + 1], fingerprint)
  if earlier and earlier[1] == 'replayed' then return describe_earlier(reservation, earlier) end
  if earlier then return earlier end
  if not is_live(reservation) then return describe('ended', reservation) end
  local units, field = wanted_units(wanted)
  if not units then return {'invalid', field} end
  if not is_as_seen(reservation, ask, seen) then return {'lines_changed'} end
  if ask.conflict then return {'invalid', ask.conflict} end
  local held = units_held(reservation)
  local freed, substitutes = units_freed(reservation, held, units)
  if not freed then return {'invalid', 'stands_for', substitutes} end
  local lines = rows_of_command(first, reservation, id, ask, skus, held, freed, substitutes)
  if not lines then return {'lines_changed'} end
  local not_claimed = unclaimed(lines, ask)
  if not_claimed then return not_claimed end

  local outcome, elsewhere, is_substituted = nil, {}, false
  if ask.wishes then
    outcome = serve_wishes(ask.wishes, lines, false)
    for _, line in ipairs(lines) do
      outcome.needs_buyer = outcome.needs_buyer or line.room.needs_buyer
    end
    is_substituted = substitutes_more(reservation, outcome, units)
    if plan == ANYWHERE and (#outcome.short > 0 or is_substituted) then
      elsewhere = wishes_elsewhere(ask.wishes, lines)
    end
  else
    outcome = serve_lines(lines, units)
    if plan == ANYWHERE then elsewhere = lines_elsewhere(lines) end
  end
  if #elsewhere > 0 then return {'split', elsewhere} end
  local due = (#outcome.short > 0 or is_substituted) and holds_are_due(reclaimed)
  if due then return refused_for_units(true, outcome.short) end
  if #outcome.short > 0 then
    if outcome.needs_buyer then return {'invalid', 'buyer'} end
    return refused_for_units(false, outcome.short)
  end
  local totals = {}
  for _, line in ipairs(lines) do
    totals[line.sku] = line.own.units - line.own.freed + line.quantity
  end
  local new_lines = amended_lines(reservation, held, skus, totals)
  if #new_lines == 0 then return {'invalid', 'lines'} end
  if #new_lines > most_lines then return {'limit_exceeded', 'lines', most_lines} end

  local extras = copied_extras(reservation, ask)
  note_stand_ins(extras, reservation, outcome, units)
  reservation.waiting = reservation.waiting or {}
  local changes, on_terms = hold(reservation, id, ask, extras, lines, totals)
  if reservation.extras or extras.stands_for or on_terms then
    reservation.rewaits = true
    local missing = reservation.body[BODY_MISSING]
    remake_reservation(reservation, id, new_lines, missing, without_empty(extras))
  else
    amend_reservation(reservation, id, new_lines)
  end
  return record_amendment(reservation, id, actor, fingerprint, operation, KEYS[first + 1], changes)
end)

-- After this point nothing may fail.
write_rows()
write_reservations()
write_pledges()
write_seen()
write_ledger()
return table.concat(replies)
