"""What a program may use."""

import ctypes
import os
import resource
import struct
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_OPEN_FILES = 64
_PENDING_SIGNALS = 64  # timers of timer_create are among them

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What a program may take with all its processes: together `processes * memory_mb` of memory, and /tmp on top."""

    memory_mb: int
    processes: int
    scratch_mb: int
    output_kb: int
    seconds: float  # on processors
    idle_seconds: float = 2.0  # neither on a processor nor waiting for one
    wall_seconds: float = 60.0  # past these, the machine was too busy to tell


def drop_privileges() -> None:
    """No capability is left, and no exec gives one back."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 or _libc.capset(header, bytes(24)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"dropping privileges: {os.strerror(number)}")


def apply(limits: Limits, own_user: bool) -> None:
    """Limits the calling process and its descendants, for good.

    The limit on time here is of each process; `usage` has that of all of them.

    Args:
        own_user: processes are counted by user, so that their limit makes sense for a user of our own only.
    """
    wanted = {
        resource.RLIMIT_AS: limits.memory_mb << 20,
        resource.RLIMIT_CPU: int(limits.seconds) + 1,
        resource.RLIMIT_FSIZE: limits.scratch_mb << 20,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_SIGPENDING: _PENDING_SIGNALS,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    if own_user:
        wanted[resource.RLIMIT_NPROC] = limits.processes + 2  # process 1 and its parent are of this user, too
    for limit, value in wanted.items():
        resource.setrlimit(limit, (value, value))
