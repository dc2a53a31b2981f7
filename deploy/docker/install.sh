#!/bin/sh
# install-locked FILE: the packages of a lock file, by hash, compiled and without their tests, into /opt/packages, which
# goes over the root of an image that has the virtual environment.
set -eu
/opt/pip/bin/pip --python /opt/routershift/bin/python install --quiet --root /opt/packages --no-compile \
    --no-deps --require-hashes --requirement "$1"
for folder in numpy sympy mpmath pandas pyarrow; do
    find /opt/packages/opt/routershift/lib/python3*/site-packages/"$folder" -type d -name tests -prune -exec rm -rf {} + \
        2>/dev/null || true
done
# Some packages hold files for other versions of Python, which do not compile.
/opt/routershift/bin/python -m compileall -q -j 0 -s /opt/packages --invalidation-mode unchecked-hash /opt/packages ||
    true
