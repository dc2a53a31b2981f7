-- One process at a time holds a role of the run. Each holder gets a higher fence than the one before; scripts that write
-- for a role refuse a lower one, so a process that was stopped and replaced can write nothing more.
-- KEYS: lease, fences
-- ARGV: action ('acquire', 'renew' or 'release'), role, holder, milliseconds,
--       'acquire': the holder that is known to be gone ('' for none); else: the fence
-- 'acquire' answers {fence, '', 0}, or {0, the other holder, the milliseconds left to it}. 'renew' answers 1, or 0 where
-- another has taken over.
local action, role, holder, milliseconds, last = unpack(ARGV)
local lease, fences = unpack(KEYS)
local found = redis.call('GET', lease)
if action == 'acquire' then
  if found and found ~= holder and found ~= last then return {0, found, redis.call('PTTL', lease)} end
  redis.call('SET', lease, holder, 'PX', milliseconds)
  return {redis.call('HINCRBY', fences, role, 1), '', 0}
end
local fence = tonumber(redis.call('HGET', fences, role) or '0')
if fence > tonumber(last) or (found and found ~= holder) then return 0 end
if action == 'release' then
  redis.call('UNLINK', lease)
  return 1
end
-- A Redis that lost its last writes may have forgotten the lease and the fence.
redis.call('HSET', fences, role, last)
redis.call('SET', lease, holder, 'PX', milliseconds)
return 1
