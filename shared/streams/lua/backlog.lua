-- What streams hold at one moment. KEYS: bytes, streams... ARGV: names of the streams
-- Answers for each: entries, bytes, milliseconds since its oldest entry came (0 for none).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i, name in ipairs(ARGV) do
  local oldest = redis.call('XRANGE', KEYS[i + 1], '-', '+', 'COUNT', 1)[1]
  local came = oldest and tonumber(string.match(oldest[1], '^%d+')) or now
  answer[i] = {
    redis.call('XLEN', KEYS[i + 1]), tonumber(redis.call('HGET', KEYS[1], name) or '0'), math.max(0, now - came),
  }
end
return answer
