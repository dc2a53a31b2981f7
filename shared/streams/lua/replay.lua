-- Puts the payload of a dead letter back on its stream. Its group is in flight again.
-- After the arguments come the names of the streams that share the limit of bytes, its own among them.
-- `payload` is '' where it lies in the blob `blob_id`, `traceparent` where the group's trace is not recorded,
-- and `reference` where no arrays of it lie in the payload store.
-- Returns 'ok', 'gone' (no such dead letter: replayed or purged before), 'alive' (the group is in flight), 'full' or
-- 'expired' (the blob has to be written again).
local dead, destination, tickets, in_flight, ledger, bytes, ended, letter_blob, blob = unpack(KEYS)
local id, letter_size, group, trajectories, reason, destination_name, byte_limit, stage,
  payload, size, blob_id, chunks, traceparent,
  reference = unpack(ARGV)
local call = redis.call
local beside = {}
if traceparent ~= '' then beside = {'t', traceparent} end
if reference ~= '' then
  beside[#beside + 1] = 'k'
  beside[#beside + 1] = reference
end
local function refuse(answer)
  if blob_id ~= '' then call('UNLINK', blob) end
  return answer
end
if call('XRANGE', dead, id, id)[1] == nil then return 'gone' end
if call('HEXISTS', in_flight, group) == 1 then return refuse('alive') end
local held = 0
for i = 15, #ARGV do held = held + tonumber(call('HGET', bytes, ARGV[i]) or '0') end
if held > 0 and held + size > tonumber(byte_limit) then return refuse('full') end
if blob_id == '' then
  call('XADD', destination, '*', 'g', group, 'n', trajectories, 'p', payload, unpack(beside))
else
  local found = chunks == '1' and call('EXISTS', blob) or call('HLEN', blob)
  if found ~= tonumber(chunks) then return refuse('expired') end
  call('XADD', destination, '*', 'g', group, 'n', trajectories, 'b', blob_id, 'c', chunks, 'z', size, unpack(beside))
  call('PERSIST', blob)
end
call('HINCRBY', bytes, destination_name, size)
call('XDEL', dead, id)
call('UNLINK', letter_blob)
call('HINCRBY', bytes, 'dead', -letter_size)
call('SADD', tickets, group)
call('HSET', in_flight, group, trajectories .. ' ' .. stage)
call('HINCRBY', ledger, 'dead:' .. reason, -trajectories)
call('XADD', ended, '*', 'g', group, 'n', trajectories, 'e', 'replayed:' .. reason)
return 'ok'
