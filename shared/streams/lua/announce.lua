-- Announces a published version. Asked again because the answer was lost, it announces it once.
local weights = KEYS[1]
local manifest, announcements_kept = unpack(ARGV)
local newest = redis.call('XREVRANGE', weights, '+', '-', 'COUNT', 1)[1]
if newest == nil or newest[2][2] ~= manifest then
  redis.call('XADD', weights, 'MAXLEN', '~', announcements_kept, '*', 'p', manifest)
end
