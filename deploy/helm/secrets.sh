#!/bin/sh
# Prints the Secrets of a release that has a Redis of its own: passwords of its users, and what Redis knows of them. Each
# call makes new ones.
# usage: secrets.sh RELEASE | kubectl -n NAMESPACE apply -f -
set -eu
release=$1
here=$(dirname "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

secret() { # NAME KEY < value
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels:\n    app.kubernetes.io/instance: %s\ndata:\n  %s: %s\n' \
    "$1" "$release" "$2" "$(base64 | tr -d '\n')"
}

umask 077
for user in functions generation environments reward learner curriculum operator backup; do
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/redis-$user"
  secret "$release-redis-$user" password < "$folder/redis-$user"
done
cat "$here/../redis/users.acl" "$here/../redis/backup.acl" | sh "$here/../redis/acl.sh" "$folder/redis-" > "$folder/users.acl"
secret "$release-redis-acl" users.acl < "$folder/users.acl"
