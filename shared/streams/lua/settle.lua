-- An entry leaves its stream: for the next stream, for the dead letters, or because its group has ended.
-- `entry_blob` is the blob of the entry, `blob` that of the message; both are unused keys where there is none. They are
-- the same where the payload goes on with more behind it: then the blob moves, and somebody else may have moved it before.
-- `destination_name` is '' for none. `payload` is what of the message does not lie in the blob `blob_id`. `size` is that
-- of the whole message. `byte_limit` is 0 for none. `traceparent` is '' where the group's trace is not recorded.
-- `entry_reference` and `reference` are the keys of the payload store that entry and message refer to; '' for none.
-- `field` of the ledger is '' where the group goes on; `step` is '' for none. `shrinks` is 1 where a Redis without memory
-- must not refuse it.
-- Returns 'ok', 'gone' (somebody else settled it, or its group has ended), 'full' or 'expired' (the blob has to be
-- written again). Nothing is done where it returns 'full' or 'expired'.
local source, destination, tickets, in_flight, ledger, bytes, ended, settlement, entry_blob, blob,
  payloads = unpack(KEYS)
local reader, entry, entry_size, source_name, group, trajectories, token, remembered_seconds,
  destination_name, byte_limit, stage, payload, size, blob_id, chunks, field, step,
  traceparent, entry_reference, reference, shrinks = unpack(ARGV)
local call = redis.call
local beside = {}
if traceparent ~= '' then beside = {'t', traceparent} end
if reference ~= '' then
  beside[#beside + 1] = 'k'
  beside[#beside + 1] = reference
end
local moves = blob_id ~= '' and entry_blob == blob
local acknowledged = false
local function acknowledge()
  if not acknowledged then call('XACK', source, reader, entry) end
  acknowledged = true
end
local function remove(blob_moves)
  acknowledge()
  call('XDEL', source, entry)
  if not blob_moves and string.sub(entry_blob, -1) ~= ':' then call('UNLINK', entry_blob) end -- most entries have none
  call('HINCRBY', bytes, source_name, 0 - entry_size)
  if entry_reference ~= '' then call('HDEL', payloads, entry_reference) end
end
local pending = redis.pcall('XPENDING', source, reader, entry, entry, 1)
if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then return pending end
-- Where the consumer group was destroyed nothing is pending, but an entry that still exists was settled by nobody.
if (pending.err or pending[1] == nil) and call('XRANGE', source, entry, entry)[1] == nil then
  if call('GET', settlement) == token then return 'ok' end
  if not moves then call('UNLINK', blob) end
  return 'gone'
end
-- A second entry of a group that has ended, as a Redis that lost writes may bring it back, counts for nothing. A dead
-- letter is kept even so: the entry may belong to no group at all.
local alive = call('HEXISTS', in_flight, group) == 1
if not alive and destination_name ~= 'dead' then
  remove(false)
  call('UNLINK', blob)
  return 'gone'
end
if destination_name ~= '' then
  local held = tonumber(call('HGET', bytes, destination_name) or '0')
  local limit = tonumber(byte_limit)
  if limit > 0 and held > 0 and held + size > limit then
    -- A payload in one piece is sent with each attempt. Until then it must not take room that nobody accounts for.
    if chunks == '1' and not moves then call('UNLINK', blob) end
    return 'full'
  end
  if blob_id ~= '' then
    local found = chunks == '1' and call('EXISTS', blob) or call('HLEN', blob)
    if found ~= tonumber(chunks) then return 'expired' end
  end
end
-- Without functions Redis refuses a script for want of memory at its first write, and only if that may grow. So one
-- that shrinks what is held begins with a command that does.
if shrinks == '1' then acknowledge() end
call('SET', settlement, token, 'EX', remembered_seconds)
remove(moves)
if destination_name ~= '' then
  if blob_id == '' then
    call('XADD', destination, '*', 'g', group, 'n', trajectories, 'p', payload, unpack(beside))
  else
    if payload ~= '' then
      beside[#beside + 1] = 'p'
      beside[#beside + 1] = payload
    end
    call('XADD', destination, '*', 'g', group, 'n', trajectories, 'b', blob_id, 'c', chunks, 'z', size - #payload,
      unpack(beside))
    call('PERSIST', blob)
  end
  call('HINCRBY', bytes, destination_name, size)
  if reference ~= '' then call('HSET', payloads, reference, group) end
end
if not alive then return 'ok' end
if field == '' then
  call('HSET', in_flight, group, trajectories .. ' ' .. stage)
  return 'ok'
end
call('SREM', tickets, group)
call('HDEL', in_flight, group)
call('HINCRBY', ledger, field, trajectories)
if step == '' then
  call('XADD', ended, '*', 'g', group, 'n', trajectories, 'e', field)
else
  call('XADD', ended, '*', 'g', group, 'n', trajectories, 'e', field, 's', step)
end
return 'ok'
