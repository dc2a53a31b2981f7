-- Deletes a dead letter. Its trajectories stay counted as dead.
-- Returns 1, or 0 where there is no such dead letter.
local dead, bytes, blob = unpack(KEYS)
local id, size = unpack(ARGV)
if redis.call('XDEL', dead, id) == 0 then return 0 end
redis.call('UNLINK', blob)
redis.call('HINCRBY', bytes, 'dead', -size)
return 1
