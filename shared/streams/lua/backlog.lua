-- Reads what streams hold at one moment. KEYS: bytes, then the streams. ARGV: the names of the streams.
-- Returns for each: entries, bytes, milliseconds since its oldest entry was added (0 for none), 1 where it ever had one.
local bytes = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
for i, name in ipairs(ARGV) do
  local stream = KEYS[i + 1]
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local added = oldest and tonumber(string.match(oldest[1], '^%d+')) or now
  local held = redis.call('HGET', bytes, name)
  -- The account of its bytes begins with its first entry.
  answer[i] = { redis.call('XLEN', stream), tonumber(held or '0'), math.max(0, now - added), held and 1 or 0 }
end
return answer
