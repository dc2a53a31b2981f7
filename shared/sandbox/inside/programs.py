"""Runs a program once for each input, as process 1 of the sandbox. What it prints is data; nothing else is asked."""

import contextlib
import os
import select
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.process.orphans import die_with_parent
from shared.sandbox.inside import interpreter
from shared.sandbox.inside import limits as walls
from shared.sandbox.inside.limits import Limits
from shared.sandbox.inside.namespaces import STDIN, STDOUT

_PIECE = 1 << 16


@dataclass(frozen=True)
class Run:
    """`end`: "exit", "signal", "time" or "output"; `code`: of the exit or the signal."""

    output: bytes
    end: str
    code: int


def command(arguments: Sequence[str], environment: dict[str, str]) -> Callable[[], None]:
    """A program for `run`: another one of the system."""

    def start() -> None:
        os.execvpe(arguments[0], list(arguments), environment)  # noqa: S606  # no shell is wanted

    return start


class Runner:
    """Runs programs one after the other, each in a process that is the ancestor of all it starts."""

    def __init__(self, limits: Limits, owner: int, standard: int | None) -> None:
        """Args: owner: the socket of who wants the output. standard: the folder for stdin; None without isolation."""
        self._limits = limits
        self._owner = owner
        self._standard = standard

    def run(self, start: Callable[[], None], text: bytes = b"", keep: Sequence[int] = ()) -> Run:
        """Gives `text` on stdin and takes stdout. When it returns, no process of the program is left."""
        feed = self._input(text)
        ours, theirs = self._pipe()
        us = os.getpid()
        child = os.fork()
        if not child:
            interpreter.leave(partial(self._become, start, us, feed, theirs, keep))
        os.close(feed)
        try:
            output, end = self._watch(child, ours)
        finally:
            os.close(ours)
            os.close(theirs)
        code = self._end(child)
        if end != "exit":
            return Run(output, end, 0)
        return Run(output, "signal" if code < 0 else "exit", abs(code))

    def _input(self, text: bytes) -> int:
        if self._standard is None:
            with tempfile.TemporaryFile(dir=Path.cwd()) as file:
                file.write(text)
                file.seek(0)
                return os.dup(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(STDIN, dir_fd=self._standard)
        fd = os.open(STDIN, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=self._standard)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
        return os.open(STDIN, os.O_RDONLY, dir_fd=self._standard)

    def _pipe(self) -> tuple[int, int]:
        """Both ends of stdout. We keep both open: a program may close it and open it again."""
        if self._standard is None:
            ours, theirs = os.pipe()
        else:
            ours = os.open(STDOUT, os.O_RDONLY | os.O_NONBLOCK)
            theirs = os.open(STDOUT, os.O_WRONLY)
        os.set_blocking(ours, False)
        return ours, theirs

    def _become(self, start: Callable[[], None], us: int, feed: int, output: int, keep: Sequence[int]) -> None:
        die_with_parent(us)
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        for ours, standard in ((feed, 0), (output, 1), (nothing, 2)):
            os.dup2(ours, standard)
        low = 3
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)
        walls.apply(self._limits, own_user=self._standard is not None)
        start()

    def _watch(self, child: int, output: int) -> tuple[bytes, str]:
        """What comes until the program's first process ends: one that it left behind may hold the pipe for ever.

        An owner that hangs up, if only to send, wants no more of it: its time is over.
        """
        data = bytearray()
        limit = self._limits.output_kb << 10
        poll = select.poll()
        process = os.pidfd_open(child)
        poll.register(output, select.POLLIN)
        poll.register(process, select.POLLIN)
        poll.register(self._owner, select.POLLIN | select.POLLHUP)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if output in ready:
                    _take(output, data)
                if len(data) > limit:
                    return bytes(data[:limit]), "output"
                if process in ready:
                    while len(data) <= limit and _take(output, data):
                        pass
                    return bytes(data[:limit]), "output" if len(data) > limit else "exit"
                if self._owner in ready:
                    return bytes(data), "time"
        finally:
            os.close(process)

    def _end(self, child: int) -> int:
        """Kills what is left and reaps everything; gives the exit code of the first process, -N for signal N."""
        code = 0
        while True:
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                return code
            if pid == child:
                code = os.waitstatus_to_exitcode(status)

    def _left(self) -> Iterator[int]:
        if self._standard is not None:
            yield -1  # all but ourselves, who are process 1
        else:
            for thread in Path("/proc/self/task").iterdir():
                yield from map(int, (thread / "children").read_text().split())


def clear(folder: str) -> None:
    """Removes all that is in the folder, whatever a program made of it: closed to its owner, or very deep."""
    top = Path(folder)
    top.chmod(0o700)
    left = list(top.iterdir())
    moved = 0
    while left:
        path = left.pop()
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            continue
        path.chmod(0o700)
        for inner in list(path.iterdir()):
            if inner.is_symlink() or not inner.is_dir():
                inner.unlink()
                continue
            while os.path.lexists(higher := top / f".{moved}"):
                moved += 1
            inner.chmod(0o700)  # a folder is moved only by who may write to it
            left.append(inner.rename(higher))  # to the top: a path has a greatest length
        path.rmdir()


def _take(output: int, data: bytearray) -> bool:
    """Reads once. False where there is nothing now."""
    try:
        piece = os.read(output, _PIECE)
    except BlockingIOError:
        return False
    data += piece
    return bool(piece)
