-- Deletes a dead letter. Its trajectories stay counted as dead. `reference` is '' where the payload store has none of it.
-- Returns 1, or 0 where there is no such dead letter.
local dead, bytes, blob, payloads = unpack(KEYS)
local id, size, reference = unpack(ARGV)
if redis.call('XDEL', dead, id) == 0 then return 0 end
redis.call('UNLINK', blob)
if reference ~= '' then redis.call('HDEL', payloads, reference) end
redis.call('HINCRBY', bytes, 'dead', -size)
return 1
