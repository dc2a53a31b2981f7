-- The account of a run at one moment.
-- KEYS: ledger, in_flight, tickets, bytes, ended
-- Answers the two hashes, the set, the third hash, and the id of the newest end ('' for none).
local newest = redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)[1]
return {
  redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]), redis.call('SMEMBERS', KEYS[3]),
  redis.call('HGETALL', KEYS[4]), newest and newest[1] or '',
}
