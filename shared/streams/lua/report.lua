-- Writes fields of the run's progress.
-- ARGV: field, value, field, value ...
local progress = KEYS[1]
return redis.call('HSET', progress, unpack(ARGV))
