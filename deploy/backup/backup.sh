#!/bin/sh
# Backs up a run that goes on: Redis as it is at one moment, and then the newest checkpoint. That may contain more than Redis
# then said, never less, and the learner knows by the lists in `trained` what is delivered to it again.
# usage: backup.sh RUN DESTINATION KEEP
#   RUN: the folder of the run; DESTINATION: gets a folder named by the time; KEEP: how many stay
#   REDIS_CLI: redis-cli with how Redis is reached, as a user who may SYNC (deploy/redis/backup.acl)
set -eu
run=$1
into=$2
keep=$3
name=$(date -u +%Y%m%dT%H%M%SZ)
beside=$into/.$name

rm -rf "$into"/.2*Z # abandoned
mkdir -p "$beside/run/checkpoints/trained"
${REDIS_CLI:-redis-cli} --rdb "$beside/dump.rdb" > /dev/null

# The newest folder of FROM/PATTERN; again where it was removed, for newer ones, while it was read.
newest() { # FROM PATTERN TO
  for try in 1 2 3 4 5; do
    found=$(cd "$1" 2> /dev/null && ls -d $2 2> /dev/null | tail -n 1) || found=
    [ -n "$found" ] || return 0
    if cp -a "$1/$found" "$3/" 2> /dev/null && [ -e "$1/$found" ]; then
      return 0
    fi
    rm -rf "${3:?}/$found"
  done
  echo "backup.sh: $1/$found is gone before it is copied, $try times; keep more of them" >&2
  exit 1
}

newest "$run/checkpoints" 'step-*' "$beside/run/checkpoints"
for list in $(ls "$run/checkpoints/trained" 2> /dev/null | sed "/^${found:-none}\.json\$/q"); do
  cp -a "$run/checkpoints/trained/$list" "$beside/run/checkpoints/trained/"
done
mkdir "$beside/run/weights"
newest "$run/weights" 'v*' "$beside/run/weights"
for other in "$run"/*; do
  case ${other##*/} in
    checkpoints | weights | logs | redis) ;;
    *) cp -a "$other" "$beside/run/" ;;
  esac
done
sync
mv "$beside" "$into/$name"
ls -d "$into"/2*Z | sort -r | tail -n "+$((keep + 1))" | while read -r old; do rm -rf "$old"; done
echo "$into/$name"
