#!/bin/sh
# Makes a run's folder and the data of its Redis of what backup.sh wrote. Neither may be there, and nobody may serve them.
# usage: restore.sh BACKUP RUN DATA
#   DATA: the folder of Redis; REDIS_SERVER, REDIS_CLI: its programs
set -eu
backup=$1
run=$2
data=$3
server=${REDIS_SERVER:-redis-server}
client=${REDIS_CLI:-redis-cli}

for there in "$run" "$data/appendonlydir" "$data/dump.rdb"; do
  if [ -e "$there" ]; then
    echo "restore.sh: $there is there; move it away, nothing is overwritten" >&2
    exit 2
  fi
done
mkdir -p "$run" "$data"

# A Redis with an append-only file reads nothing else. So one without reads the snapshot, and then writes such a file.
scratch=$(mktemp -d)
socket=$scratch/redis.sock
cp "$backup/dump.rdb" "$data/dump.rdb"
$server --port 0 --unixsocket "$socket" --dir "$data" --dbfilename dump.rdb --save '' --appendonly no --logfile '' > "$scratch/log" &
pid=$!
trap 'kill $pid 2> /dev/null || true; wait $pid || true; rm -rf "$scratch"' EXIT
persistence() { $client -s "$socket" info persistence 2> /dev/null | tr -d '\r'; }
until persistence | grep -q '^loading:0$'; do
  kill -0 $pid 2> /dev/null || { cat "$scratch/log" >&2; exit 1; }
  sleep 0.1
done
# What was announced then may be older than the weights that are here: the learner announces again what it has.
$client -s "$socket" --scan --pattern '*:weights' | while read -r key; do $client -s "$socket" del "$key" > /dev/null; done
[ "$($client -s "$socket" config set appendonly yes)" = OK ]
while persistence | grep -Eq '^aof_rewrite_(in_progress|scheduled):1$'; do sleep 0.1; done
persistence | grep -q '^aof_last_bgrewrite_status:ok$'
$client -s "$socket" shutdown nosave > /dev/null 2>&1 || true
wait $pid || true
rm "$data/dump.rdb"

cp -a "$backup/run/." "$run/"
sync
