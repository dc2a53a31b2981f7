-- An entry leaves its stream: for the next one, or for the end of its group's life.
-- KEYS: source, destination (the source itself for none), tickets, in_flight, ledger, bytes
-- ARGV: consumer group, entry id, bytes of the entry, source name, destination name ('' for none),
--       byte limit of the destination (0: none), payload for the destination, ledger field ('' : the group lives on),
--       group, trajectories
-- Answers 'ok', 'gone' (somebody else settled it) or 'full' (nothing was done).
local live = ARGV[8] == ''
if redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1] == nil then return 'gone' end
if ARGV[5] ~= '' then
  local held = tonumber(redis.call('HGET', KEYS[6], ARGV[5]) or '0')
  local limit = tonumber(ARGV[6])
  if limit > 0 and held > 0 and held + #ARGV[7] > limit then return 'full' end
  redis.call('XADD', KEYS[2], '*', 'g', ARGV[9], 'n', ARGV[10], 'p', ARGV[7])
  redis.call('HINCRBY', KEYS[6], ARGV[5], #ARGV[7])
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HINCRBY', KEYS[6], ARGV[4], -ARGV[3])
if not live then
  redis.call('SREM', KEYS[3], ARGV[9])
  redis.call('HDEL', KEYS[4], ARGV[9])
  redis.call('HINCRBY', KEYS[5], ARGV[8], ARGV[10])
end
return 'ok'
