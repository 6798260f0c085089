-- Pledges: what a promise that was made on a row's terms holds beside reserved units.
--
-- Its units that there is nothing on the shelf for yet wait in the row's queue, in the order in
-- which they were promised, and count as the row's backordered. Field `waiting` of the reservation:
-- msgpack {sku = {units, place}}, only there while units wait. Queue of a row: sorted set of
-- reservation ids by place, which is the row's version when they were promised.
--
-- extras of a reservation's body, a map; all but the first are only there where they apply:
--   channel      through which the units were promised
--   backordered  {sku = units} that were promised with nothing on the shelf for them
--   stands_for   {{asked, sku, units, served, of, for, kind}, ...}: units that are held for units
--                of another SKU, whether as a substitute or as a component of a kit
--   proposed     SKUs whose substitutes somebody has to accept first
--   decided      {sku = 'accepted' or 'declined'}
--   first        {missing, stands_for, proposed} as they were before anything was decided

local queued, queue_up = collector()
local unqueued, leave_queue = collector()

-- Has `id` wait in a row's queue for units that were promised just now.
local function wait_in_queue(queue_key, id, row)
  need_sorted_set(queue_key)
  queue_up(queue_key, integer(row.version), id)
end

-- Takes a reservation that ends out of a row's queue. Returns the units that it still waited for.
local function stop_waiting(reservation, id, sku, queue_key)
  local entry = reservation.waiting[sku]
  if not entry then return 0 end
  need_sorted_set(queue_key)
  leave_queue(queue_key, id)
  reservation.waiting[sku] = nil
  return entry[1]
end

local function write_pledges()
  for queue_key, members in pairs(queued) do
    redis.call('ZADD', queue_key, unpack(members))
  end
  for queue_key, ids in pairs(unqueued) do
    redis.call('ZREM', queue_key, unpack(ids))
  end
end
