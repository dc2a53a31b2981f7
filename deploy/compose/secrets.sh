#!/bin/sh
# Makes the secrets of docker-compose.yml that are not there yet, in the folder beside this file or in $1.
#
# Docker mounts the files as they are, and containers read them as users of their own: so the files are readable, and
# the folder is what keeps others on this machine out.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"
for name in redis_functions redis_curriculum redis_generation redis_environments redis_reward redis_learner redis_operator \
    grafana_password; do
    if [ ! -s "$folder/$name" ]; then
        head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/$name"
        chmod 0644 "$folder/$name"
    fi
done
