-- The indexes that list what exists: the SKUs of a location, the locations of a partition.

local new_members = {}

local function list_row(row, sku, skus_key, location, locations_key)
  if row.exists then return end
  need_sorted_set(skus_key)
  need_sorted_set(locations_key)
  new_members[#new_members + 1] = {skus_key, sku}
  new_members[#new_members + 1] = {locations_key, location}
end

local function write_listing()
  for i = 1, #new_members do
    redis.call('ZADD', new_members[i][1], '0', new_members[i][2])
  end
end
