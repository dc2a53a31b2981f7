-- An entry leaves its stream: for the next one, or for the end of its group's life.
-- KEYS: source, destination (the source itself for none), tickets, in_flight, ledger, bytes, ended,
--       the entry's settlement, blob of the entry, blob of the message
-- ARGV:  1 consumer group   2 entry id   3 bytes of the entry   4 source name   5 group   6 trajectories
--        7 token of this settlement   8 seconds for which it is remembered
--        9 destination name ('' for none)  10 its byte limit (0: none)  11 stage there  12 payload  13 its bytes
--       14 blob of the payload ('' for none; the payload is empty then)  15 chunks of it
--       16 ledger field ('' : the group lives on)  17 step ('' for none)
-- Answers 'ok', 'gone' (somebody else settled it, or its group has ended), 'full' (nothing was done) or 'expired'
-- (nothing was done: the blob has to be written again).
local function call(...) return redis.call(...) end
local function remove()
  call('XACK', KEYS[1], ARGV[1], ARGV[2])
  call('XDEL', KEYS[1], ARGV[2])
  call('UNLINK', KEYS[9])
  call('HINCRBY', KEYS[6], ARGV[4], -ARGV[3])
end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then return pending end
-- Where the group was destroyed nothing is pending, but an entry that still stands was settled by nobody.
if (pending.err or pending[1] == nil) and call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1] == nil then
  if call('GET', KEYS[8]) == ARGV[7] then return 'ok' end
  call('UNLINK', KEYS[10])
  return 'gone'
end
-- A second entry of a group whose life has ended, as a Redis that lost writes may bring it back, counts for nothing. A
-- dead letter is kept even so: the entry may be of no group at all.
local alive = call('HEXISTS', KEYS[4], ARGV[5]) == 1
if not alive and ARGV[9] ~= 'dead' then
  remove()
  call('UNLINK', KEYS[10])
  return 'gone'
end
if ARGV[9] ~= '' then
  local held = tonumber(call('HGET', KEYS[6], ARGV[9]) or '0')
  local limit = tonumber(ARGV[10])
  if limit > 0 and held > 0 and held + ARGV[13] > limit then return 'full' end
  if ARGV[14] ~= '' and call('HLEN', KEYS[10]) ~= tonumber(ARGV[15]) then return 'expired' end
end
-- Redis refuses a script for want of memory only at its first write, and only if that may grow. What makes room, or
-- about as much as it takes, begins with a command that shrinks: a full Redis must not stop those who empty it.
if tonumber(ARGV[13]) <= 2 * ARGV[3] + 4096 then call('XACK', KEYS[1], ARGV[1], ARGV[2]) end
call('SET', KEYS[8], ARGV[7], 'EX', ARGV[8])
remove()
if ARGV[9] ~= '' then
  if ARGV[14] == '' then
    call('XADD', KEYS[2], '*', 'g', ARGV[5], 'n', ARGV[6], 'p', ARGV[12])
  else
    call('XADD', KEYS[2], '*', 'g', ARGV[5], 'n', ARGV[6], 'b', ARGV[14], 'c', ARGV[15], 'z', ARGV[13])
    call('PERSIST', KEYS[10])
  end
  call('HINCRBY', KEYS[6], ARGV[9], ARGV[13])
end
if not alive then return 'ok' end
if ARGV[16] == '' then
  call('HSET', KEYS[4], ARGV[5], ARGV[6] .. ' ' .. ARGV[11])
else
  call('SREM', KEYS[3], ARGV[5])
  call('HDEL', KEYS[4], ARGV[5])
  call('HINCRBY', KEYS[5], ARGV[16], ARGV[6])
  if ARGV[17] == '' then
    call('XADD', KEYS[7], '*', 'g', ARGV[5], 'n', ARGV[6], 'e', ARGV[16])
  else
    call('XADD', KEYS[7], '*', 'g', ARGV[5], 'n', ARGV[6], 'e', ARGV[16], 's', ARGV[17])
  end
end
return 'ok'
