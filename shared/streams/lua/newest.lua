-- Reads the newest announcement: its id, and its payload unless the caller knows that id. Nothing before the first.
local weights = KEYS[1]
local known_id = ARGV[1]
local newest = redis.call('XREVRANGE', weights, '+', '-', 'COUNT', 1)[1]
if newest == nil then
  return {}
elseif newest[1] == known_id then
  return { newest[1] }
end
return { newest[1], newest[2][2] }
