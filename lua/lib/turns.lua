-- Turns: what is changed of those who wait for units of a row while they go on to.
-- @include pledges

local changed_waits = {}

local function write_waits()
  for _, reservation in pairs(changed_waits) do write_waiting(reservation) end
end
