-- Numbers and arrays as they are written.

-- Exact decimal text of an integer; Lua's own concatenation keeps 14 digits only.
local function integer(n)
  return string.format('%d', n)
end

-- The same of a moment in ms, of which a group names few over and over.
local moments = {}
local function moment(ms)
  local text = moments[ms]
  if not text then
    text = integer(ms)
    moments[ms] = text
  end
  return text
end

-- The beginning of a msgpack array of `count` elements, which are to follow.
local function array_of(count)
  if count < 16 then return string.char(0x90 + count) end
  return string.char(0xdc, math.floor(count / 256), count % 256)
end
