-- A published version is announced. Asked again because its answer was lost, it stands there once.
-- KEYS: weights. ARGV: manifest, announcements kept
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest == nil or newest[2][2] ~= ARGV[1] then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'p', ARGV[1])
end
