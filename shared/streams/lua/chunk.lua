-- A piece of a large payload is written; it goes by itself unless a hand-over makes it permanent.
-- KEYS: blob. ARGV: index of the chunk, its bytes, seconds to live
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
