-- A dead letter goes for good; its trajectories stay counted as dead.
-- KEYS: dead, bytes, blob of the letter. ARGV: letter's id, bytes of the letter
-- Answers 1, or 0 where there is no such letter.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('UNLINK', KEYS[3])
redis.call('HINCRBY', KEYS[2], 'dead', -ARGV[2])
return 1
