#!/bin/sh
# Prints the template users.acl as Redis reads it: one line for each user, with the SHA-256 of its password.
# usage: acl.sh PREFIX < users.acl, where the password of user NAME stands in the file PREFIXNAME
set -euf
prefix=$1
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
  set -- $line # runs of blanks become one
  printf '%s\n' "$*"
done
