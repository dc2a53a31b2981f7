-- The newest announcement: its id, and its payload unless that id is the one the caller has. Nothing before the first.
-- KEYS: weights. ARGV: id
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest == nil then
  return {}
elseif newest[1] == ARGV[1] then
  return { newest[1] }
end
return { newest[1], newest[2][2] }
