-- A group of a problem was judged: its solve rate moves. A record is 'GROUPS RATE EQUAL'.
-- The field '' of the hash is the number of problems that it may hold; without it nothing is wanted, and nothing kept.
-- ARGV: the problem, the share of its responses that solve it, 1 where their rewards are equal, the least weight of a
-- group in the running rate.
-- Returns 1 where it was kept.
local solve_rates = KEYS[1]
local problem, share, equal, least_weight = unpack(ARGV)
local call = redis.call
local most = call('HGET', solve_rates, '')
if not most then return 0 end
local groups, rate = 0, 0
local before = call('HGET', solve_rates, problem)
if before then
  groups, rate = string.match(before, '^(%d+) (%S+)')
elseif call('HLEN', solve_rates) > tonumber(most) then
  return 0
end
groups = groups + 1
rate = rate + math.max(1 / groups, tonumber(least_weight)) * (share - rate)
call('HSET', solve_rates, problem, string.format('%d %.6f %s', groups, rate, equal))
return 1
