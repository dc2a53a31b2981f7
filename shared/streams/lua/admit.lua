-- A prompt enters the run: it takes a ticket, is counted, and is appended to its stream.
-- After the arguments come the names of the streams that share the limit of bytes, its own among them.
-- `selection` is the place in the order of problems after this prompt, as JSON; '' for none.
-- `traceparent` is '' for a prompt whose trace is not recorded. `payload` is '' where the prompt lies in the blob `blob_id`.
-- Returns 'ok', 'done' (this index was admitted before: the answer was lost), 'back' (Redis has lost writes and forgotten
-- the prompts from its own cursor on), 'finished', 'tickets', 'full' or 'expired' (the blob has to be written again).
local destination, tickets, in_flight, ledger, bytes, progress, blob = unpack(KEYS)
local index, ticket_limit, byte_limit, stream, group, trajectories, stage, payload, size, blob_id, chunks,
  selection, traceparent = unpack(ARGV)
local call = redis.call
local trace = traceparent ~= '' and {'t', traceparent} or {}
local function refuse(answer)
  if blob_id ~= '' then call('UNLINK', blob) end
  return answer
end
local cursor = tonumber(call('HGET', progress, 'prompts') or '0')
-- The blob may be the one of the prompt that was admitted, so it is left alone. One that nobody claims expires.
if cursor > tonumber(index) then return 'done' end
if cursor < tonumber(index) then return refuse('back') end
if call('HGET', progress, 'phase') == 'finished' then return refuse('finished') end
if call('SCARD', tickets) >= tonumber(ticket_limit) then return refuse('tickets') end
local held = 0
for i = 14, #ARGV do held = held + tonumber(call('HGET', bytes, ARGV[i]) or '0') end
if held > 0 and held + size > tonumber(byte_limit) then return refuse('full') end
if blob_id == '' then
  call('XADD', destination, '*', 'g', group, 'n', trajectories, 'p', payload, unpack(trace))
else
  local found = chunks == '1' and call('EXISTS', blob) or call('HLEN', blob)
  if found ~= tonumber(chunks) then return refuse('expired') end
  call('XADD', destination, '*', 'g', group, 'n', trajectories, 'b', blob_id, 'c', chunks, 'z', size, unpack(trace))
  call('PERSIST', blob)
end
call('HINCRBY', bytes, stream, size)
call('SADD', tickets, group)
call('HSET', in_flight, group, trajectories .. ' ' .. stage)
call('HINCRBY', ledger, 'prompted', trajectories)
call('HSET', progress, 'prompts', index + 1)
if selection ~= '' then call('HSET', progress, 'selection', selection) end
return 'ok'
