-- Tells whether a stream has room for so many bytes, as settle.lua decides it. Where it has none, the producer is marked
-- as waiting, so that the reader can make room.
-- Returns 1 or 0.
local bytes, waiting = unpack(KEYS)
local stream, size, byte_limit, waiting_milliseconds = unpack(ARGV)
local held = tonumber(redis.call('HGET', bytes, stream) or '0')
if held == 0 or held + size <= tonumber(byte_limit) then return 1 end
redis.call('SET', waiting, size, 'PX', waiting_milliseconds)
return 0
