"""Who may write: one process at a time for each role of a run, held by a lock in the run's folder.

The lock is the kernel's (flock): it ends with the process, however that ends, and a process that is merely stopped
keeps it. Machines that share no folder are kept apart by `shared.streams.lease`.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from shared.errors import PreconditionError

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_FOLDER = "locks"
# What file systems answer that have no locks, as some network volumes.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, named so that others can tell whether it is still there."""

    host: str
    boot: str  # of the machine: another boot has other processes
    namespace: str  # of process ids: a container has its own
    pid: int
    started: int  # clock ticks from boot to the start of the process; tells a reused pid apart
    since: str  # ISO 8601, for people

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            namespace=os.readlink("/proc/self/ns/pid"),  # noqa: PTH115  # the link names no file
            pid=os.getpid(),
            started=_start_ticks(os.getpid()) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`. Raises ValueError where it is no holder."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            raise ValueError(f"{text!r} names no process") from None

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process that can be seen from here."""
        here = Holder.current()
        return (self.boot, self.namespace) == (here.boot, here.namespace)

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended. False where that cannot be known from here."""
        return self.is_here and _start_ticks(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def locked(folder: Path, role: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock of a role in a run's folder during the block.

    Args:
        folder: of the run; made where it is missing.
        role: such as "learner", "curriculum" or "redis".
        wait_seconds: how long to wait for another process to let it go.

    Raises:
        PreconditionError: another process holds it, and is named.
    """
    path = folder / _FOLDER / f"{role}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with path.open("a+", encoding="utf-8") as file:
        while not _lock(file.fileno(), path):
            if time.monotonic() >= deadline:
                raise PreconditionError(taken(role, folder.name, _written(path)))
            time.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(Holder.current().encode())
        file.flush()
        yield


def holder(folder: Path, role: str) -> Holder | None:
    """Who holds the lock of a role, or held it last; None where nobody ever did."""
    try:
        return _written(folder / _FOLDER / f"{role}.lock")
    except OSError:
        return None


def taken(role: str, run: str, known: Holder | None) -> str:
    """The message for a role that another process holds; `known` None: it has not said who it is."""
    who = known or "another process"
    return f"the {role} of run {run} is held by {who}; stop that one, or choose another run.id"


def _written(path: Path) -> Holder | None:
    try:
        return Holder.decode(path.read_text(encoding="utf-8"))
    except ValueError:  # it has just taken the lock
        return None


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s cannot be locked here (%s); only the lease in Redis keeps a second one out", path, error)
    return True


def _start_ticks(pid: int) -> int | None:
    """When a process of this namespace started; None where there is none, or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
