-- Gives back the tickets of groups.
-- ARGV: the groups.
local tickets = KEYS[1]
return redis.call('SREM', tickets, unpack(ARGV))
