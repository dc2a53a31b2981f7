"""Leaves the machine behind: own user, processes, mounts, network, IPC and host name. Linux 5.14 and up.

From a process in its initial state to process 1 of a new PID namespace, whose root is a read-only tmpfs with the
folders that programs need, a writable /tmp, a few devices, and no /proc. 5.14 is where RLIMIT_NPROC began to count
per user namespace.
"""

import ctypes
import os
import signal
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from shared.process.orphans import die_with_parent

# linux/sched.h
_NEW_NS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NEW_ALL = _NEW_NS | _NEW_CGROUP | _NEW_UTS | _NEW_IPC | _NEW_USER | _NEW_PID | _NEW_NET
# linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 0x4000, 0x40000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MNT_DETACH = 1, 4, 2
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
# Numbers of the newer system calls are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_PR_SET_DUMPABLE = 4  # linux/prctl.h

SCRATCH = "/tmp"  # noqa: S108  # a tmpfs of the sandbox
STDOUT = "/dev/stdout"  # a pipe with a name, so that programs can open it again
STDIN = "stdin"  # a file in the folder that `enter` gives, which programs see as /dev/stdin
_STANDARD = "/dev/std"
MAX_INPUT_MB = 64

_USER = 1000  # inside
_NOBODY = 65534  # who that is outside, where we are root: root's limits would not bind

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def enter(folders: Iterable[str], scratch_mb: int, parent: int) -> int:
    """Returns in process 1 of the new namespaces; its parent waits for it, and all of it dies with `parent`.

    Args:
        folders: what programs may read beside the system's folders.
        scratch_mb: size of /tmp.

    Returns:
        A descriptor of the folder for stdin. Through it files can be written, which programs can only read.

    Raises:
        OSError: the platform does not allow it; the text names the step.
    """
    Path("/proc/self/oom_score_adj").write_text("1000")  # rather us than Redis
    _new_user()
    # Folders under a private home, such as that of root, are reachable only by who we still are.
    links = {path: Path(path).readlink() for path in _SYSTEM if Path(path).is_symlink()}
    trees = {path: _tree(path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV) for path in _outermost(folders)}
    devices = {path: _tree(path, _ATTR_NOSUID | _ATTR_NOEXEC) for path in _DEVICES if Path(path).exists()}
    _become_user()
    die_with_parent(parent)
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")
    _mount("tmpfs", SCRATCH, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.chdir(SCRATCH)
    Path("tmp").mkdir()
    _mount("tmpfs", "tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={scratch_mb}m,nr_inodes=4096,mode=700")
    for path, fd in {**trees, **devices}.items():
        _place(fd, path)
    for path, target in links.items():
        Path(path.lstrip("/")).symlink_to(target)
    Path("dev/shm").symlink_to(SCRATCH)
    standard = _standard_files()
    _check(_libc.pivot_root(b".", b"."), "pivot_root")  # puts the old root on top of the new one
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2 of the old root")
    os.chdir("/")
    for path in ("/", _STANDARD):
        _set_attributes(_AT_FDCWD, path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0)
    os.chdir(SCRATCH)
    socket.sethostname("sandbox")
    _become_first()
    return standard


def _standard_files() -> int:
    """What /proc/self/fd would be there for: /dev/stdin, /dev/stdout, /dev/stderr and /dev/fd. Gives the folder."""
    folder = Path(_STANDARD.lstrip("/"))
    folder.mkdir()
    _mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={MAX_INPUT_MB + 1}m,nr_inodes=8,mode=755")
    os.mkfifo(STDOUT.lstrip("/"))
    Path("dev/fd").mkdir()
    for number, target in enumerate((f"{_STANDARD}/{STDIN}", STDOUT, "/dev/null")):
        Path(f"dev/fd/{number}").symlink_to(target)
    Path("dev/stdin").symlink_to(f"{_STANDARD}/{STDIN}")
    Path("dev/stderr").symlink_to("/dev/null")
    return _tree(str(folder), _ATTR_NOSUID | _ATTR_NODEV)


def _outermost(folders: Iterable[str]) -> list[str]:
    """Those to be seen, without what lies in another one of them."""
    present = sorted({os.path.realpath(path) for path in (*_SYSTEM, *folders) if Path(path).exists()})
    return [path for path in present if not any(path.startswith(f"{other}/") for other in present)]


def _new_user() -> None:
    """New namespaces, in which we are `_USER` once `_become_user` was called."""
    outside = os.geteuid()
    if outside:
        group = os.getegid()
        _unshare()
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"{_USER} {group} 1")
        _write("/proc/self/uid_map", f"{_USER} {outside} 1")
        return
    # Only a process that is still root may say that we are another user outside.
    ours, theirs = socket.socketpair()
    us = os.getpid()
    helper = os.fork()
    if not helper:
        code = 1
        try:
            theirs.recv(1)
            _write(f"/proc/{us}/gid_map", f"{_USER} {_NOBODY} 1")
            _write(f"/proc/{us}/uid_map", f"{_USER} {_NOBODY} 1")
            code = 0
        finally:
            os._exit(code)
    try:
        _unshare()
    finally:
        ours.send(b".")
        code = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        ours.close()
        theirs.close()
    if code:
        raise OSError(f"root cannot map itself to user {_NOBODY}")
    os.setgroups([])


def _unshare() -> None:
    _check(_libc.unshare(_NEW_ALL), "unshare")


def _become_user() -> None:
    os.setresgid(_USER, _USER, _USER)
    os.setresuid(_USER, _USER, _USER)


def _become_first() -> None:
    """Forks: only a child is in the new PID namespace. The parent stays to be waited for and to pass on SIGTERM."""
    child = os.fork()
    if not child:
        die_with_parent()
        _libc.prctl(_PR_SET_DUMPABLE, 0)
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    os.closerange(0, 4096)
    os.waitpid(child, 0)
    os._exit(0)


def _tree(path: str, attributes: int) -> int:
    """A private copy of the mounts from `path` down, not attached to anything yet."""
    fd = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC)
    _check(fd, f"open_tree of {path}")
    _set_attributes(fd, "", attributes, _AT_EMPTY_PATH | _AT_RECURSIVE)
    return int(fd)


def _set_attributes(fd: int, path: str, attributes: int, flags: int) -> None:
    wanted = _MountAttributes(attr_set=attributes)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    answer = _libc.syscall(_SYS_MOUNT_SETATTR, fd, os.fsencode(path), flags, ctypes.byref(wanted), size)
    _check(answer, f"mount_setattr of {path or 'a tree'}")


def _place(tree: int, path: str) -> None:
    """Attaches the tree at `path` below the working directory."""
    target = Path(path.lstrip("/"))
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), flags), f"move_mount of {path}")
    os.close(tree)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options)), f"mount of {target}")


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise OSError(error.errno, f"writing {path}: {error.strerror}") from None


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
