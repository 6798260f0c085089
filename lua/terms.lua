#!lua
-- terms: set on what terms a row's units are promised, if it is still at the version that the caller
-- saw. What is not named ends; its supplies are no part of this and stay.
--
-- Command {id, merchant, location, actor, fingerprint, sku, expected version, location member,
--          terms}
--   expected version  0 where the row is to be made
--   terms    {backorder_limit, channels {name = {cap, minimum}}, buyer_cap {units, window_ms,
--            scope}}, each only where it is set; the scope of a cap of the row's own is left out
-- Keys     row, SKU index of the location, location index of the partition, idempotency record
-- Returns  {'ok' | 'replayed', at, sequence, version, on_hand, reserved, safety_stock, deficit, ...},
--            the rest as add_settings() has it
--          {'key_reused'}, {'version_conflict', version}
--          {'invalid', field}              split: a row whose units are spread cannot have any
-- Ledger   terms, detail {terms}, as they were set
-- @include group
-- @include rows
-- @include ledger
-- @include settings

-- The field that is not of its form; nil where all is well.
local function wrong_field(terms)
  if type(terms) ~= 'table' then return 'terms' end
  if terms.backorder_limit and not is_integer(terms.backorder_limit, 1, MAX_QUANTITY) then
    return 'backorder_limit'
  end
  for _, pool in pairs(terms.channels or {}) do
    for _, units in pairs(pool) do
      if not is_integer(units, 0, MAX_QUANTITY) then return 'channels' end
    end
  end
  local cap = terms.buyer_cap
  if cap and not (is_integer(cap.units, 1, MAX_QUANTITY)
    and is_integer(cap.window_ms, 1, MAX_QUANTITY * 100)
    and (cap.scope == nil or cap.scope == 'merchant')) then
    return 'buyer_cap'
  end
end

-- The pools that a row has from now on. What a pool holds it goes on to hold, an ended one too.
local function new_channels(before, asked)
  local channels = {}
  for name, pool in pairs(before or {}) do
    if pool.held > 0 then channels[name] = {held = pool.held} end
  end
  for name, pool in pairs(asked or {}) do
    local held = channels[name] and channels[name].held or 0
    channels[name] = {cap = pool.cap, minimum = pool.minimum, held = held}
  end
  return next(channels) and channels or nil
end

-- The terms that the row has from now on. While units wait it keeps some, so that they are seen.
local function new_terms(row, asked)
  local terms = {
    backorder_limit = asked.backorder_limit,
    channels = new_channels(row.terms and row.terms.channels, asked.channels),
    buyer_cap = asked.buyer_cap,
    supplies = row.terms and row.terms.supplies,
    waits = row.terms and row.terms.waits,
    late = row.terms and row.terms.late,
  }
  if row.backordered > 0 and not terms.backorder_limit then terms.backorder_limit = 0 end
  return next(terms) and terms or nil
end

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, sku,
    expected, member, asked)
  local earlier = seen_reply(KEYS[first + 3], fingerprint)
  if earlier then return earlier end
  local bad_field = wrong_field(asked)
  if bad_field then return {'invalid', bad_field} end
  local row = row_at(KEYS[first])
  if expected ~= row.version then return {'version_conflict', row.version} end
  if row.spread.is_any and next(asked) then return {'invalid', 'split'} end

  list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
  row.terms = new_terms(row, asked)
  row.changes_terms = true
  local line = change_row(row, sku, 0, 0, 0, 0)
  return record_setting('terms', row, line, KEYS[first + 3], id, merchant, location, actor,
    fingerprint, {asked})
end)

-- After this point nothing may fail.
write_rows()
write_listing()
write_seen()
write_ledger()
return table.concat(replies)
