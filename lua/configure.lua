#!lua
-- configure: change a row's settings, if it is still at the version that the caller saw.
--
-- Command {id, merchant, location, actor, fingerprint, sku, expected version, safety_stock,
--          location member, low_stock_threshold}
--   expected version     0 where the row is to be made
--   safety_stock, low_stock_threshold  units, or -1 to leave the setting as it is; not both
-- Keys     row, SKU index of the location, location index of the partition, idempotency record
-- Returns  {'ok' | 'replayed', at, sequence, version, on_hand, reserved, safety_stock, deficit,
--           low_stock_threshold, offline_buffer}; the last two as add_settings() has them
--          {'key_reused'}, {'version_conflict', version}, {'invalid', field}
--          {'split', {{sku, units}}}    so many must be free at home first; see is_short_at_home()
-- Ledger   configure, detail {safety_stock, low_stock_threshold}, the last where it was named
-- @include group
-- @include rows
-- @include ledger
-- @include settings

local replies = each_command(function(first, _, id, merchant, location, actor, fingerprint, sku,
    expected, safety_stock, member, threshold)
  local earlier = seen_reply(KEYS[first + 3], fingerprint)
  if earlier then return earlier end
  if not is_integer(safety_stock, -1, MAX_QUANTITY) then return {'invalid', 'safety_stock'} end
  if not is_integer(threshold, -1, MAX_QUANTITY) then return {'invalid', 'low_stock_threshold'} end
  local row = row_at(KEYS[first])
  if expected ~= row.version then return {'version_conflict', row.version} end
  if safety_stock < 0 then safety_stock = row.safety_stock end
  local kept_back = safety_stock - row.safety_stock
  if is_short_at_home(row, kept_back) then return {'split', {{sku, kept_back}}} end

  list_row(row, sku, KEYS[first + 1], member, KEYS[first + 2])
  local detail, threshold_change = {safety_stock}, nil
  if threshold >= 0 then
    detail[2] = threshold
    threshold_change = threshold - row.low_stock_threshold
  end
  local line = change_row(row, sku, 0, 0, kept_back, 0, threshold_change)
  return record_setting('configure', row, line, KEYS[first + 3], id, merchant, location, actor,
    fingerprint, detail)
end)

-- After this point nothing may fail.
write_rows()
write_listing()
write_seen()
write_ledger()
return table.concat(replies)
