-- Heartbeat: entries that this consumer still owns become fresh. Those that another consumer took over are left to it.
-- ARGV: consumer group, consumer, number of deliveries to set ('' leaves it as it is), then the ids of the entries.
-- Returns the number of entries that it still owns; -1 where the consumer group is gone.
local stream = KEYS[1]
local group, consumer, deliveries = unpack(ARGV, 1, 3)
local owned = 0
for i = 4, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then return -1 end
    return pending
  end
  if pending[1] ~= nil then
    if deliveries == '' then
      redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
    else
      redis.call('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', deliveries, 'JUSTID')
    end
    owned = owned + 1
  end
end
return owned
