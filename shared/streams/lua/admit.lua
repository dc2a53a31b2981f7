-- A prompt enters the run: takes a ticket, is counted, and joins the prompts stream.
-- KEYS: stream, tickets, in_flight, ledger, bytes, progress
-- ARGV: index of the prompt, ticket limit, byte limit, stream name, group, trajectories, payload, stage
-- Answers 'ok', 'done' (this index was admitted before: the answer was lost), 'back' (Redis has lost writes and forgotten
-- the prompts from its own cursor on), 'finished', 'tickets' or 'full'.
local cursor = tonumber(redis.call('HGET', KEYS[6], 'prompts') or '0')
if cursor > tonumber(ARGV[1]) then return 'done' end
if cursor < tonumber(ARGV[1]) then return 'back' end
if redis.call('HGET', KEYS[6], 'phase') == 'finished' then return 'finished' end
if redis.call('SCARD', KEYS[2]) >= tonumber(ARGV[2]) then return 'tickets' end
local held = tonumber(redis.call('HGET', KEYS[5], ARGV[4]) or '0')
if held > 0 and held + #ARGV[7] > tonumber(ARGV[3]) then return 'full' end
redis.call('XADD', KEYS[1], '*', 'g', ARGV[5], 'n', ARGV[6], 'p', ARGV[7])
redis.call('HINCRBY', KEYS[5], ARGV[4], #ARGV[7])
redis.call('SADD', KEYS[2], ARGV[5])
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6] .. ' ' .. ARGV[8])
redis.call('HINCRBY', KEYS[4], 'prompted', ARGV[6])
redis.call('HSET', KEYS[6], 'prompts', ARGV[1] + 1)
return 'ok'
