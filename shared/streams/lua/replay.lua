-- A dead letter's payload goes back to the stream that it came from, and its group lives again.
-- KEYS: dead, destination, tickets, in_flight, ledger, bytes, ended, blob of the letter, blob of the payload
-- ARGV:  1 letter's id   2 bytes of the letter   3 group   4 trajectories   5 reason
--        6 destination name   7 its byte limit   8 stage there   9 payload  10 its bytes  11 blob of the payload ('' for
--       none; the payload is empty then)  12 chunks of it
-- Answers 'ok', 'gone' (no such letter: replayed or purged before), 'alive' (the group is in flight) or 'full'.
local function call(...) return redis.call(...) end
if call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1] == nil then return 'gone' end
if call('HEXISTS', KEYS[4], ARGV[3]) == 1 then return 'alive' end
local held = tonumber(call('HGET', KEYS[6], ARGV[6]) or '0')
if held > 0 and held + ARGV[10] > tonumber(ARGV[7]) then return 'full' end
if ARGV[11] == '' then
  call('XADD', KEYS[2], '*', 'g', ARGV[3], 'n', ARGV[4], 'p', ARGV[9])
else
  call('XADD', KEYS[2], '*', 'g', ARGV[3], 'n', ARGV[4], 'b', ARGV[11], 'c', ARGV[12], 'z', ARGV[10])
  call('PERSIST', KEYS[9])
end
call('HINCRBY', KEYS[6], ARGV[6], ARGV[10])
call('XDEL', KEYS[1], ARGV[1])
call('UNLINK', KEYS[8])
call('HINCRBY', KEYS[6], 'dead', -ARGV[2])
call('SADD', KEYS[3], ARGV[3])
call('HSET', KEYS[4], ARGV[3], ARGV[4] .. ' ' .. ARGV[8])
call('HINCRBY', KEYS[5], 'dead:' .. ARGV[5], -ARGV[4])
call('XADD', KEYS[7], '*', 'g', ARGV[3], 'n', ARGV[4], 'e', 'replayed:' .. ARGV[5])
return 'ok'
