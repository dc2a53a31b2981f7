"""The system calls that a program may not make.

What needs a capability fails without our help. Forbidden is what reaches other processes or deep into the kernel, and
what uses up a quota that the kernel counts for the whole machine or for our user outside of the sandbox:

- for the machine: contexts of asynchronous I/O (fs.aio-max-nr), huge pages;
- for the user: instances and watches of inotify and fanotify, keys, pages of pipes (fs.pipe-user-pages-soft);
- memory that no rlimit counts: memfd, System V IPC, message queues, io_uring, bpf, perf.

The others have limits of their own: files, and with them pipes, sockets, watches of epoll, eventfd, signalfd and
timerfd, by RLIMIT_NOFILE; timers and queued signals by RLIMIT_SIGPENDING; processes by RLIMIT_NPROC; names by the
inodes of /tmp; locked memory, real-time priorities and pseudo terminals are not to be had. Record locks (fcntl) are
counted nowhere: how many a program can set is a matter of its time.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

# The numbers of system calls on x86-64 and on aarch64, which lacks some.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # Other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "unshare": (272, 97), "setns": (308, 268),
    # The kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "modify_ldt": (154, None), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # Memory that no rlimit counts, and where memory is
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # Quotas of the user or of the machine
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "io_setup": (206, 0), "io_submit": (209, 2), "io_pgetevents": (333, 292),
    # A program that puts itself last would look as if the machine were too busy for it.
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
}  # fmt: skip
_CONDITIONAL = {
    "socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "prlimit64": (302, 261), "fcntl": (72, 25),
    "mmap": (9, 222),
}  # fmt: skip
_CLONE3 = 435
_UNKNOWN = 463  # the first number that we do not know; those of x32 are far above

_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: these are in the network namespace; AF_VSOCK is not
_NEW_NAMESPACES = 0x7E020000  # linux/sched.h: all of CLONE_NEW*
_FCNTL = (1024, 1026, 1031)  # F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
_MAP_HUGETLB = 0x40000

# linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS and so on
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value

_libc = ctypes.CDLL(None, use_errno=True)


def forbid() -> None:
    """Filters the system calls of this process and its descendants. Needs no_new_privs.

    Raises:
        OSError: the architecture is none of those we know, or the kernel has no filters.
    """
    machine = platform.machine()
    if machine not in _AUDIT:
        raise OSError(f"no system call filter for {machine}; there is one for {' and '.join(_AUDIT)}")
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(machine))
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, fprog) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _filter(machine: str) -> list[_Instruction]:
    """The BPF program, for `struct seccomp_data`: number at 0, architecture at 4, low words of arguments from 16."""
    column = list(_AUDIT).index(machine)
    numbers = {name: pair[column] for name, pair in (_FORBIDDEN | _CONDITIONAL).items()}
    eperm, allow = _returns(_ERRNO | _EPERM), _returns(_ALLOW)
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT[machine]), _returns(_KILL), (_LOAD, 0, 0, 0)]
    program += _where(_AT_LEAST, _UNKNOWN, [_returns(_ERRNO | _ENOSYS)])
    # Its flags lie in memory, where a filter cannot look; libc falls back to clone.
    program += _where(_EQUAL, _CLONE3, [_returns(_ERRNO | _ENOSYS)])
    for name in _FORBIDDEN:
        if (number := numbers[name]) is not None:
            program += _where(_EQUAL, number, [eperm])

    def condition(name: str, argument: int, test: int, values: Sequence[int], then: _Instruction, els: int) -> None:
        body = [(_LOAD, 0, 0, 16 + 8 * argument)]
        for value in values:
            body += _where(test, value, [then])
        program.extend(_where(_EQUAL, numbers[name] or 0, [*body, _returns(els)]))

    for name in ("socket", "socketpair"):
        condition(name, 0, _EQUAL, _FAMILIES, allow, _ERRNO | _EAFNOSUPPORT)
    condition("prlimit64", 0, _EQUAL, (0,), allow, _ERRNO | _EPERM)  # of itself, not of process 1
    condition("clone", 0, _ANY_BIT, (_NEW_NAMESPACES,), eperm, _ALLOW)
    condition("fcntl", 1, _EQUAL, _FCNTL, eperm, _ALLOW)
    condition("mmap", 3, _ANY_BIT, (_MAP_HUGETLB,), eperm, _ALLOW)
    return [*program, allow]


def _returns(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _where(test: int, value: int, body: list[_Instruction]) -> list[_Instruction]:
    return [(test, 0, len(body), value), *body]
