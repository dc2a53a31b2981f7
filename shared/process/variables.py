"""The environment variables of worker processes."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

# All that a worker sees of our environment: enough to find programs, libraries and models. REDIS_URL and tokens stay.
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def of_programs(more: Iterable[str] = ()) -> dict[str, str]:
    """What a program of the user sees: what programs and libraries need, and the variables of these names."""
    return {name: os.environ[name] for name in (*_ENVIRONMENT, *more) if name in os.environ}


def of_workers(more: Iterable[str] = ()) -> dict[str, str]:
    """What a worker process sees, which runs code of ours: the same, and what Python needs for it."""
    # What it answers must not depend on which process does; and it finds every module that we found.
    found = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**of_programs(more), "PYTHONHASHSEED": "0", "PYTHONPATH": found}
