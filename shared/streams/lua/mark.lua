-- A write that changes nothing. A server is asked whether the last write of a connection is on disk or on replicas, and a
-- call that is sent again may find all of its writes done.
return redis.call('HINCRBY', KEYS[1], 'dead', 0)
