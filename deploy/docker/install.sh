#!/bin/sh
# install-locked FILE: the packages of a lock file, by hash, into /opt/routershift, compiled, without their tests.
set -eu
/opt/pip/bin/pip --python /opt/routershift/bin/python install --quiet --no-deps --require-hashes --requirement "$1"
for folder in numpy sympy mpmath; do
    find /opt/routershift/lib/python3*/site-packages/"$folder" -type d -name tests -prune -exec rm -rf {} + 2>/dev/null || true
done
