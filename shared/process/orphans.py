"""No process outlives the one that started it, however that one ends: the kernel sees to it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)  # loaded here: the call may come between fork and exec


def die_with_parent(parent: int | None = None) -> None:
    """SIGKILL when the *thread* that started this process ends. Linux only; elsewhere nothing happens.

    To be called after the last change of credentials, which would undo it.

    Args:
        parent: the process that started this one; where it is gone already, SystemExit.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit("the process that started this one is gone")
