-- Turns: what is changed of those who wait for units of a row while they go on to.
-- @include pledges

local changed_waits = {}

local function write_waits()
  for key, reservation in pairs(changed_waits) do
    if next(reservation.waiting) then
      redis.call('HSET', key, 'waiting', cmsgpack.pack(reservation.waiting))
    else
      redis.call('HDEL', key, 'waiting')
    end
  end
end
