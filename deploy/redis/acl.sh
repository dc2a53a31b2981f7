#!/bin/sh
# Prints the template users.acl as Redis reads it: one line for each user, with the SHA-256 of its password.
# usage: acl.sh PREFIX [SERVER] < users.acl, where the password of user NAME stands in the file PREFIXNAME, and SERVER is
# the redis-server that will read this: Redis 7.0 is not given +waitaof, which it does not know.
set -euf
prefix=$1
unknown=none
case ${2:+$("$2" --version)} in 'Redis server v=7.0.'*) unknown=' +waitaof' ;; esac
while read line; do # without -r: a backslash at its end joins a line with the next
  case $line in
    'user '*) ;;
    *) continue ;;
  esac
  name=${line#user }
  name=${name%% *}
  case $line in
    *' PASSWORD '*)
      password=$(cat "$prefix$name")
      if [ ${#password} -lt 32 ]; then
        echo "acl.sh: $prefix$name has ${#password} characters; expected at least 32, as from openssl rand -hex 32" >&2
        exit 2
      fi
      hash=$(printf %s "$password" | sha256sum)
      line="${line%% PASSWORD *} #${hash%% *} ${line#* PASSWORD }"
      ;;
  esac
  case $line in *"$unknown"*) line=${line%%"$unknown"*}${line#*"$unknown"} ;; esac
  set -- $line # runs of blanks become one
  printf '%s\n' "$*"
done
