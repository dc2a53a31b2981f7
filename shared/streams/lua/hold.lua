-- Heartbeat: entries that this consumer still owns become fresh; those taken over by another are left to it.
-- KEYS: stream. ARGV: consumer group, consumer, entry ids...
-- Answers the number of entries that are still its own; -1 where the consumer group is gone.
local kept = 0
for i = 3, #ARGV do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then return -1 end
    return pending
  end
  if pending[1] ~= nil then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    kept = kept + 1
  end
end
return kept
