-- Rows whose units are spread over partitions: what their column `split` says, read and written.
--
-- At home, where the totals and all facts are:
--   'home <epoch> <open> <places> <was> <cells>'
--   epoch   rises with every plan: where promises are made, and whether they are made at all
--   open    1 where the places may promise; 0 while they are closed, or the row is no longer split
--   places  partitions that promise single lines, joined by commas; '-' where that is home itself
--   was     '<until ms>@<places>;...' of earlier plans, as long as a retry may look for its answer
--   cells   '<partition>:<granted>:<version>:<received>:<returned>:<picked>:<reserved>:<heard>;...'
--           of each part: the units ever granted to it, what it said of itself at its `version`, and
--           which plan it knew then: 2 * epoch, and 1 more where it was open
-- At a part: 'part <home> <epoch> <open> <received> <returned>'
--
-- All units are sums since the beginning, so telling and hearing them twice, late or in another
-- order changes nothing: what one side has sent and the other has not taken is on the way.

local CELL_FORM = '(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)'
local CELL_FIELDS = {'partition', 'granted', 'version', 'received', 'returned', 'picked',
  'reserved', 'heard'}

-- What the row's column says; of a row that never was split, that it has no parts.
local function home_of(row)
  local home = {epoch = 0, open = 0, places = '-', was = '-', cells = {}, of = {}}
  if not row.split then return home end
  local epoch, open, places, was, cells =
    string.match(row.split, '^home (%d+) ([01]) (%S+) (%S+) (%S+)$')
  home.epoch, home.open, home.places, home.was = tonumber(epoch), tonumber(open), places, was
  for text in string.gmatch(cells, '[^;]+') do
    local values = {string.match(text, CELL_FORM)}
    if #values > 0 then
      local cell = {}
      for i, name in ipairs(CELL_FIELDS) do cell[name] = tonumber(values[i]) end
      home.cells[#home.cells + 1] = cell
      home.of[cell.partition] = cell
    end
  end
  return home
end

local function cell_of(home, partition)
  local cell = home.of[partition]
  if not cell then
    cell = {}
    for _, name in ipairs(CELL_FIELDS) do cell[name] = 0 end
    cell.partition = partition
    home.cells[#home.cells + 1] = cell
    home.of[partition] = cell
  end
  return cell
end

local function home_text(home)
  local cells = {}
  for i, cell in ipairs(home.cells) do
    local values = {}
    for j, name in ipairs(CELL_FIELDS) do values[j] = integer(cell[name]) end
    cells[i] = table.concat(values, ':')
  end
  return string.format('home %d %d %s %s %s', home.epoch, home.open, home.places, home.was,
    #cells > 0 and table.concat(cells, ';') or '-')
end

local function part_of(row)
  local part = {epoch = 0, open = 0, received = 0, returned = 0}
  if not row.split then return part end
  local _, epoch, open, received, returned =
    string.match(row.split, '^part (%d+) (%d+) ([01]) (%d+) (%d+)$')
  part.epoch, part.open = tonumber(epoch), tonumber(open)
  part.received, part.returned = tonumber(received), tonumber(returned)
  return part
end

local function part_text(part, home)
  return string.format('part %d %d %d %d %d', home, part.epoch, part.open, part.received,
    part.returned)
end

local new_splits = {}

-- Has the row written with another column.
local function set_split(row, text)
  read_split(row, text)
  new_splits[#new_splits + 1] = row
end

local function write_splits()
  for i = 1, #new_splits do
    redis.call('HSET', new_splits[i].key, 'split', new_splits[i].split)
  end
end
