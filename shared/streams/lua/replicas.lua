-- Replicas of generation: registers one or takes it off, forgets those that fell silent, and gives the rest, by Redis'
-- own clock. KEYS: replicas. ARGV: name, workers, version, ms until it is forgotten (0: now); or none, to look only.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d %d', now + ARGV[4], ARGV[2], ARGV[3]))
end
local alive = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local expiry, workers, version = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
  if tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  else
    alive[#alive + 1] = { all[i], tonumber(workers), tonumber(version) }
  end
end
return alive
