-- Stands in front of a script that writes for a role of the run, whose last key and last two arguments it takes away.
-- A process that was silent for so long that another one took its role over can write nothing more.
do
  local fences = table.remove(KEYS)
  local fence = table.remove(ARGV)
  local role = table.remove(ARGV)
  if tonumber(redis.call('HGET', fences, role) or '0') > tonumber(fence) then
    return redis.error_reply('FENCED another process has become the ' .. role .. ' of this run')
  end
end
