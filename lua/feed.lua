#!lua
-- feed: an event that a till or a supplier tells of, late or not, once or more often.
--
-- Command {id, merchant, location, actor, fingerprint, act, source, event_id, kind, sku,
--          quantity, occurred_at, sequence, reason, reference, window_ms, location member, raw,
--          components, supply}
--   act      take; set_aside (an event that cannot be read, or was refused: why is its reason, raw
--            its text); of one that was set aside retry or drop; skip (give up on all that is
--            missing up to sequence)
--   kind     as for move, or heartbeat: the source lives; with a sequence it is an event like others
--   sequence 0 where the source does not count its events; then it is known by its id
--   window_ms  how late an event may be
--   components {{sku, units}, ...} that a kit is made of as far as the caller knows; {} of other SKUs
--   supply   the one that came with a receive or a transfer_in, or ''. One that the row does not expect
--            is no reason not to book what is there
-- Keys     row, SKU index of the location, location index of the partition, recent changes of the
--          row, idempotency record, source, its prints, sources of the location, locations with
--          sources, quarantine of the location, then of each component the row and its recent changes
-- Returns  {'ok', at, sequence, verdict, why, {ref}}
--            verdict applied, superseded (a later count has it already), quarantined (why), dropped,
--            skipped, or absent: nothing of that id was set aside. Where it was booked, why may be
--            supply_not_found; only then there are the supplies that the row expects
--          {'replayed', at, sequence}    it came before
--          {'key_reused'}                another event came under its id or its sequence
--          {'limit_exceeded', field, most}  too much is missing or was set aside: send it again later;
--            or nothing past `most` has come, so there is nothing to skip; or the location has
--            that many sources
--          {'invalid', field}
--          {'split', {{sku, units}}}    so many must be free at home first; see is_short_at_home()
-- Ledger   feed, detail {kind, quantity, reason, reference, source, occurred_at, superseded, later,
--          sku, event_id, sequence, verdict, why, raw, components, supply, expects}; the last three
--          where there are any. expects are the supplies of a row that is not in the operation
-- @include group
-- @include rows
-- @include ledger
-- @include seen
-- @include listing
-- @include asof
-- @include events
-- @include arrivals
-- @include sources
-- @include quarantine

local function wrong_field(event)
  if not is_integer(event.number, 0, MAX_EXACT) then return 'sequence' end
  if not is_integer(event.occurred_at, 0, MAX_EXACT) then return 'occurred_at' end
  if event.supply and not comes_with_supply(event.kind) then return 'supply' end
  if event.act == 'skip' or event.kind == 'heartbeat' then return nil end
  return wrong_event(event.kind, event.quantity)
end

-- The reply to an event that came before, or cannot be taken; nil where it is new.
local function once(event, source, seen_key)
  if event.number == 0 then return seen_reply(seen_key, event.fingerprint) end
  if has_come(source, event.number) then
    local found = compare_print(source, event.number, event.fingerprint, event.occurred_at)
    if found == 'same' then return {'replayed', 0, 0} end
    if found == 'other' then return {'key_reused'} end
    return nil
  end
  if not has_room(source, event.number) then
    return {'limit_exceeded', 'sequence', source.watermark}
  end
end

-- Why an event is not booked but set aside; '' where it is booked.
local function doubt(event, weighed)
  if event.occurred_at > now + limits.ahead_ms then return 'in_the_future' end
  -- What a later count has already is no matter of how late it is.
  if weighed.superseded then return '' end
  if event.occurred_at < now - event.window_ms then return 'too_late' end
  if weighed.too_late then return 'past_not_known' end
  if weighed.too_much then return 'limit_exceeded' end
  return ''
end

-- Puts an operation on record and, where `remembered` says so, that the event has come.
local function put(event, lines, weighed, verdict, why, source, seen_key)
  -- An array has no holes.
  local booked = event.booked or (event.supply and {}) or nil
  local at_sequence = record('feed', event.id, event.merchant, event.location, event.actor,
    event.fingerprint, lines, {event.kind, event.quantity, event.reason, event.reference,
      event.source, event.occurred_at, weighed.superseded, weighed.later, event.sku,
      event.event_id, event.number, verdict, why, event.raw, booked, event.supply, event.expects})
  if event.act == 'take' then
    -- The time of one that is set aside may be wrong.
    hear(source, verdict == 'quarantined' and 0 or event.occurred_at, event.kind)
    if event.number > 0 then
      note_sequence(source, event.number, event.fingerprint)
    else
      remember(seen_key, event.fingerprint, {'ok', now, at_sequence}, limits.feed_retention_ms)
    end
  end
  return {'ok', now, at_sequence, verdict, why, event.expected_refs}
end

local NOTHING = {superseded = false, later = 0}

local function put_aside(event, weighed, why, source, seen_key, quarantine)
  if quarantine.size >= MAX_QUARANTINED then
    return {'limit_exceeded', 'quarantine', MAX_QUARANTINED}
  end
  set_aside(quarantine, event.id, {now, why, event.actor, event.fingerprint, event.source,
    event.event_id, event.kind, event.sku, event.quantity, event.occurred_at, event.number,
    event.reason, event.reference, event.raw, event.supply})
  return put(event, {}, NOTHING, 'quarantined', why, source, seen_key)
end

local OWN_KEYS = 10

-- Only what leaves or comes back as a kit is an event of its components: nothing else happens to
-- what has no shelf.
local IS_OF_COMPONENTS = {sale = true, ['return'] = true}

-- What an event of a kit comes to on the rows of its components, and why it is set aside, or ''.
local function weigh_kit(event, first)
  local parts, doubts = {}, ''
  if not IS_OF_COMPONENTS[event.kind] then return parts, 'kit' end
  for i, component in ipairs(event.components) do
    local at = first + OWN_KEYS + 2 * (i - 1)
    local row, units = row_at(KEYS[at]), event.quantity * component[2]
    local past = past_of(row, KEYS[at + 1])
    local weighed = weigh(row, past, event.id, event.kind, units, event.occurred_at)
    parts[i] = {sku = component[1], row = row, past = past, units = units, weighed = weighed}
    if doubts == '' then doubts = doubt(event, weighed) end
  end
  return parts, doubts
end

-- Books what a later count of its row does not have already, component by component.
local function book_components(event, first, parts, source)
  local lines, booked = {}, {}
  for _, part in ipairs(parts) do
    if not part.weighed.superseded then
      list_row(part.row, part.sku, KEYS[first + 1], event.member, KEYS[first + 2])
      take_in(part.past, part.weighed, event.id)
      lines[#lines + 1] =
        change_row(part.row, part.sku, part.weighed.on_hand, 0, 0, part.weighed.deficit)
      booked[#booked + 1] = {part.sku, part.units}
    end
  end
  event.booked = booked
  local verdict = #lines > 0 and 'applied' or 'superseded'
  return put(event, lines, {superseded = #lines == 0, later = 0}, verdict, '', source,
    KEYS[first + 4])
end

local function book_kit(event, first, source, quarantine)
  local parts, why = weigh_kit(event, first)
  if why ~= '' then
    if event.act == 'retry' then return {'ok', now, 0, 'quarantined', why} end
    return put_aside(event, NOTHING, why, source, KEYS[first + 4], quarantine)
  end
  for _, part in ipairs(parts) do
    if is_short_at_home(part.row, -part.weighed.on_hand) then
      return {'split', {{part.sku, -part.weighed.on_hand}}}
    end
  end
  if event.act == 'retry' then take_out(quarantine, event.id) end
  return book_components(event, first, parts, source)
end

local function book(event, first, source, quarantine)
  if #event.components > 0 then return book_kit(event, first, source, quarantine) end
  local row = row_at(KEYS[first])
  local past = past_of(row, KEYS[first + 3])
  local weighed = weigh(row, past, event.id, event.kind, event.quantity, event.occurred_at)
  local why = doubt(event, weighed)
  if why == '' and is_short_at_home(row, -weighed.on_hand) then
    return {'split', {{event.sku, -weighed.on_hand}}}
  end
  if why ~= '' then
    -- One that was tried again stays where it is.
    if event.act == 'retry' then return {'ok', now, 0, 'quarantined', why} end
    return put_aside(event, weighed, why, source, KEYS[first + 4], quarantine)
  end
  if event.act == 'retry' then take_out(quarantine, event.id) end
  local expected = event.supply and supply_of(row, event.supply)
  local note = event.supply and not expected and 'supply_not_found' or ''
  if note ~= '' then event.expected_refs = expected_refs(row) end
  local verdict = weighed.superseded and 'superseded' or 'applied'
  -- What a later count has already came with its supply all the same.
  if weighed.superseded and not expected then
    if event.supply and next(event.expected_refs) then event.expects = event.expected_refs end
    return put(event, {}, weighed, verdict, note, source, KEYS[first + 4])
  end
  list_row(row, event.sku, KEYS[first + 1], event.member, KEYS[first + 2])
  take_in(past, weighed, event.id)
  if expected then take_from_supply(row, event.supply, event.quantity) end
  local line = change_row(row, event.sku, weighed.on_hand, 0, 0, weighed.deficit)
  return put(event, {line}, weighed, verdict, note, source, KEYS[first + 4])
end

local function take(event, first, source, quarantine)
  if not is_welcome(source) then return {'limit_exceeded', 'source', MAX_SOURCES} end
  if event.kind == 'heartbeat' and event.number == 0 then
    hear(source, event.occurred_at, 'heartbeat')
    return {'ok', now, 0, 'applied', ''}
  end
  local mode = event.number > 0 and 'sequence' or 'ids'
  if source.mode ~= '' and source.mode ~= mode then return {'invalid', 'sequence'} end
  local earlier = once(event, source, KEYS[first + 4])
  if earlier then
    if earlier[1] == 'replayed' then hear(source, 0) end
    return earlier
  end
  source.mode = mode
  if event.kind == 'heartbeat' then
    return put(event, {}, NOTHING, 'applied', '', source, KEYS[first + 4])
  end
  return book(event, first, source, quarantine)
end

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, act,
    source_name, event_id, kind, sku, quantity, occurred_at, number, reason, reference, window_ms,
    member, raw, components, supply)
  local event = {id = id, merchant = merchant, location = location, actor = actor,
    fingerprint = fingerprint, act = act, source = source_name, event_id = event_id, kind = kind,
    sku = sku, quantity = quantity, occurred_at = occurred_at, number = number, reason = reason,
    reference = reference, window_ms = window_ms, member = member, raw = raw,
    components = components, supply = supply ~= '' and supply or nil}
  local quarantine = quarantine_at(KEYS[first + 9])
  if event.act == 'set_aside' then
    if is_quarantined(quarantine, event.id) then return {'replayed', 0, 0} end
    return put_aside(event, NOTHING, event.reason, nil, nil, quarantine)
  end
  if event.act == 'drop' or event.act == 'retry' then
    if not is_quarantined(quarantine, event.id) then return {'ok', now, 0, 'absent', ''} end
    if event.act == 'drop' then
      take_out(quarantine, event.id)
      return put(event, {}, NOTHING, 'dropped', '', nil, nil)
    end
  end
  local bad_field = wrong_field(event)
  if bad_field then return {'invalid', bad_field} end
  local source = source_at(event.source, KEYS[first + 5], KEYS[first + 6], KEYS[first + 7],
    KEYS[first + 8], event.member)
  if event.act == 'retry' then return book(event, first, source, quarantine) end
  if event.act == 'skip' then
    if source.mode ~= 'sequence' or event.number <= source.watermark then
      return {'ok', now, 0, 'absent', ''}
    end
    -- What comes after the last that came is not missing: nobody knows that it exists.
    if event.number > source.highest then return {'limit_exceeded', 'through', source.highest} end
    hear(source, 0)
    skip_to(source, event.number)
    return put(event, {}, NOTHING, 'skipped', '', source, nil)
  end
  return take(event, first, source, quarantine)
end)

-- After this point nothing may fail.
write_rows()
write_pasts()
write_listing()
write_seen()
write_sources()
write_quarantines()
write_ledger()
return table.concat(replies)
