-- Reads the account of a run at one moment.
-- Returns the ledger, the groups in flight, the tickets, the bytes of each stream, and the id of the newest end ('' for
-- none).
local ledger, in_flight, tickets, bytes, ended = unpack(KEYS)
local newest = redis.call('XREVRANGE', ended, '+', '-', 'COUNT', 1)[1]
return {
  redis.call('HGETALL', ledger), redis.call('HGETALL', in_flight), redis.call('SMEMBERS', tickets),
  redis.call('HGETALL', bytes), newest and newest[1] or '',
}
