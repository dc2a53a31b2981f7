-- Removes consumers that have nothing pending and have been silent for so long that their processes are gone. One that
-- comes back after all is created again by its next read.
-- Returns the number removed.
local stream = KEYS[1]
local group, consumer, silent_milliseconds = unpack(ARGV)
local found = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if found.err then
  if string.find(found.err, 'NOGROUP', 1, true) then return 0 end
  return found
end
local removed = 0
for _, fields in ipairs(found) do
  local other = {}
  for i = 1, #fields, 2 do other[fields[i]] = fields[i + 1] end
  if other.name ~= consumer and other.pending == 0 and other.idle >= tonumber(silent_milliseconds) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, other.name)
    removed = removed + 1
  end
end
return removed
