"""What a worker process prints, in memory that it shares with the service.

The memory is standard output and standard error of the process and of its children, and cannot grow: what prints too
much gets an error where it prints, nobody has to read along, and what a process said last is still there when it is
dead.
"""

import fcntl
import io
import os
import sys
import time
from typing import Self

from typing_extensions import Buffer

_ECHOED_BYTES = 64 << 10  # of what is printed goes to the log in so many seconds
_ECHOED_AT_ONCE = 2 << 10  # and so much of what is printed for one item
_ECHOED_SECONDS = 10.0
_TAIL_BYTES = 500


class PrintedTooMuchError(OSError):
    """A print found no more room."""


class _Output(io.RawIOBase):
    """Standard output that says why it takes no more."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        rest = memoryview(data).cast("B")
        written = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except PermissionError:
                raise PrintedTooMuchError(too_much(self._size)) from None
        return written


def too_much(size: int) -> str:
    return f"it printed more than {size >> 10} KiB for one item; print less, or raise reward.printed_kb"


class Printed:
    def __init__(self, fd: int) -> None:
        """Takes the memory behind the descriptor, and leaves the descriptor open."""
        self.fd = fd
        self.size = os.fstat(fd).st_size

    @classmethod
    def create(cls, size: int) -> Self:
        """Memory for `size` bytes."""
        fd = os.memfd_create("printed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return cls(fd)

    def become_output(self) -> None:
        """What this process and its children print goes here; standard input is empty."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(self.fd, 1)
        os.dup2(self.fd, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process lives
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(_Output(fd, self.size), "utf-8", "backslashreplace", write_through=True)  # type: ignore[type-var]  # it only writes
            for fd in (1, 2)
        )

    @property
    def written(self) -> int:
        """Bytes printed since `clear`."""
        return os.lseek(self.fd, 0, os.SEEK_CUR)

    @property
    def full(self) -> bool:
        """Whether there was more to print than room."""
        return self.written >= self.size

    def start(self, most: int) -> bytes:
        """The beginning of what was printed."""
        return os.pread(self.fd, min(self.written, most), 0)

    @property
    def tail(self) -> str:
        """The end of what was printed, for a message."""
        start = max(self.written - _TAIL_BYTES, 0)
        return os.pread(self.fd, self.written - start, start).decode(errors="replace").strip()

    def clear(self) -> None:
        os.lseek(self.fd, 0, os.SEEK_SET)

    def close(self) -> None:
        os.close(self.fd)


class Echo:
    """Passes what was printed on to a log: the beginning, and only so much of it in a time."""

    def __init__(self, printed: Printed, name: str, log: int) -> None:
        """`log` is the descriptor to write to; `name` is that of the verifier."""
        self._printed = printed
        self._name = name
        self._log = log
        self._left = _ECHOED_BYTES
        self._since = time.monotonic()
        self._withheld = 0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._since >= _ECHOED_SECONDS:
            self._left, self._since = _ECHOED_BYTES, now
        shown = self._printed.start(min(self._left, _ECHOED_AT_ONCE))
        withheld, self._withheld = self._withheld, self._withheld + self._printed.written - len(shown)
        self._left -= len(shown)
        self._printed.clear()
        if shown:
            more = f" ({withheld} bytes before are not shown)" if withheld else ""
            self._withheld -= withheld
            text = shown.decode(errors="replace").rstrip("\n")
            os.write(self._log, f"verifier {self._name} prints{more}: {text}\n".encode(errors="replace"))
