-- Registers a replica of generation or removes it, forgets those that fell silent, and lists the rest, by the clock of
-- Redis. Without arguments it only lists.
local replicas = KEYS[1]
local name, workers, version, milliseconds = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if name then
  -- With 0 milliseconds it is forgotten at once.
  redis.call('HSET', replicas, name, string.format('%d %d %d', now + milliseconds, workers, version))
end
local alive = {}
local all = redis.call('HGETALL', replicas)
for i = 1, #all, 2 do
  local expiry, its_workers, its_version = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
  if tonumber(expiry) <= now then
    redis.call('HDEL', replicas, all[i])
  else
    alive[#alive + 1] = { all[i], tonumber(its_workers), tonumber(its_version) }
  end
end
return alive
