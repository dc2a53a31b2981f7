"""What a program may use, and the system calls it may not make."""

import ctypes
import os
import platform
import resource
import struct
from dataclasses import dataclass

# linux/prctl.h, linux/seccomp.h
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Limits:
    """What one program may take. Its processes may together take `processes * memory_mb`, and /tmp on top."""

    memory_mb: int
    processes: int
    scratch_mb: int
    output_kb: int
    seconds: float


def drop_privileges() -> None:
    """No capability is left, and no exec gives one back."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(_libc.capset(header, bytes(24)), "capset")


def apply(limits: Limits, own_user: bool) -> None:
    """Limits the calling process and its descendants, for good.

    Args:
        own_user: processes are counted by user, so that their limit makes sense for a user of our own only.
    """
    wanted = {
        resource.RLIMIT_AS: limits.memory_mb << 20,
        resource.RLIMIT_CPU: int(limits.seconds) + 1,
        resource.RLIMIT_FSIZE: limits.scratch_mb << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if own_user:
        wanted[resource.RLIMIT_NPROC] = limits.processes + 2  # process 1 and its parent are of this user, too
    for limit, value in wanted.items():
        resource.setrlimit(limit, (value, value))
    _forbid_system_calls()


# By architecture: its number in linux/audit.h, and the numbers of the system calls. What needs a capability fails
# without our help. These reach other processes or the kernel's depths (ptrace ... userfaultfd), or memory that no
# rlimit counts (memfd_create ... mq_open).
_NAMES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "unshare", "add_key", "request_key", "keyctl", "bpf",
    "perf_event_open", "userfaultfd", "memfd_create", "shmget", "semget", "msgget", "mq_open", "socket", "clone",
)  # fmt: skip
_NUMBERS = {
    "x86_64": (
        0xC000003E,
        (101, 310, 311, 272, 248, 249, 250, 321, 298, 323, 319, 29, 64, 68, 240, 41, 56),
    ),
    "aarch64": (
        0xC00000B7,
        (117, 270, 271, 97, 217, 218, 219, 280, 241, 282, 279, 194, 190, 186, 180, 198, 220),
    ),
}
_EVERYWHERE = (425, 426, 427, 447)  # io_uring_*, memfd_secret
_CLONE3 = 435
_X32 = 0x40000000
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: these are in the network namespace; AF_VSOCK is not
_NEW_NAMESPACES = 0x7E020000

# linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS and so on
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97


def _forbid_system_calls() -> None:
    """Raises OSError where the architecture is none of the above."""
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(f"no system call filter for {machine}; there is one for {' and '.join(_NUMBERS)}")
    program = _filter(*_NUMBERS[machine])
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog), "seccomp")


def _filter(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """The BPF program, for `struct seccomp_data`: number at 0, architecture at 4, first argument at 16."""
    by_name = dict(zip(_NAMES, numbers, strict=True))
    program: list[tuple[int, int, int, int]] = []

    def returns(value: int) -> None:
        program.append((_RETURN, 0, 0, value))

    def unless(test: int, value: int, skip: int) -> None:
        program.append((test, 0, skip, value))

    program.append((_LOAD, 0, 0, 4))
    program.append((_EQUAL, 1, 0, architecture))
    returns(_KILL)
    program.append((_LOAD, 0, 0, 0))
    unless(_AT_LEAST, _X32, 1)
    returns(_ERRNO | _ENOSYS)
    unless(_EQUAL, _CLONE3, 1)
    returns(_ERRNO | _ENOSYS)  # its flags lie in memory, where a filter cannot look; libc falls back to clone
    for number in (*(n for name, n in by_name.items() if name not in ("socket", "clone")), *_EVERYWHERE):
        unless(_EQUAL, number, 1)
        returns(_ERRNO | _EPERM)
    unless(_EQUAL, by_name["socket"], len(_FAMILIES) + 3)
    program.append((_LOAD, 0, 0, 16))
    for left, family in zip(range(len(_FAMILIES), 0, -1), _FAMILIES, strict=True):
        program.append((_EQUAL, left, 0, family))
    returns(_ERRNO | _EAFNOSUPPORT)
    returns(_ALLOW)
    unless(_EQUAL, by_name["clone"], 3)
    program.append((_LOAD, 0, 0, 16))
    unless(_ANY_BIT, _NEW_NAMESPACES, 1)
    returns(_ERRNO | _EPERM)
    returns(_ALLOW)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
