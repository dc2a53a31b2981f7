"""Runs a program once for each input, as process 1 of the sandbox. What it prints is data; nothing else is asked."""

import atexit
import builtins
import contextlib
import importlib
import os
import select
import signal
import site
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from services.reward.sandbox.cell import limits as walls
from services.reward.sandbox.cell.limits import Limits
from shared.process.orphans import die_with_parent

# What programs import most: loaded before the program comes, they cost it nothing.
_PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math",
    "operator", "queue", "random", "re", "statistics", "string", "typing",
)  # fmt: skip

_PIECE = 1 << 16


@dataclass(frozen=True)
class Run:
    """`end`: "exit", "signal", "time" or "output"; `code`: of the exit or the signal."""

    output: bytes
    end: str
    code: int

    @property
    def clean(self) -> bool:
        return self.end == "exit" and self.code == 0


def warm() -> None:
    """Makes an interpreter that was started without `site` like any other, and loads what programs need."""
    site.setquit()
    sys.dont_write_bytecode = True
    for name in _PRELOADED:
        importlib.import_module(name)


def _leave(start: Callable[[], None]) -> NoReturn:
    """Ends this process as the interpreter would, but does not take the modules down: that takes longer than most
    programs."""
    code = 0
    try:
        start()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as multiprocessing does
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 1
    finally:
        os._exit(code & 0xFF)


def python(path: str) -> Callable[[], None]:
    """A program for `run`: this interpreter, as `python path`."""

    def start() -> None:
        sys.argv = [path]
        sys.path.insert(0, str(Path(path).parent))
        main = sys.modules["__main__"] = ModuleType("__main__")
        vars(main).update(__file__=path, __builtins__=builtins)
        SourceFileLoader("__main__", path).exec_module(main)

    return start


def command(arguments: Sequence[str], environment: dict[str, str]) -> Callable[[], None]:
    """A program for `run`: another one of the system."""

    def start() -> None:
        os.execvpe(arguments[0], list(arguments), environment)  # noqa: S606  # no shell is wanted

    return start


class Runner:
    """Runs programs one after the other, each in a process that is the ancestor of all it starts."""

    def __init__(self, limits: Limits, isolated: bool, deadline: float, owner: int) -> None:
        """Args: deadline: on the monotonic clock, for all of them together. owner: a socket."""
        self._limits = limits
        self._owner = owner
        self._isolated = isolated
        self._deadline = deadline

    def run(self, start: Callable[[], None], text: bytes = b"", keep: Sequence[int] = ()) -> Run:
        """Gives `text` on stdin and takes stdout. When it returns, no process of the program is left."""
        feed = os.memfd_create("stdin")
        with os.fdopen(feed, "wb", closefd=False) as file:
            file.write(text)
        os.lseek(feed, 0, os.SEEK_SET)
        ours, theirs = os.pipe()
        us = os.getpid()
        child = os.fork()
        if not child:
            _leave(partial(self._become, start, us, feed, theirs, keep))
        os.close(feed)
        os.close(theirs)
        try:
            output, end = self._watch(child, ours)
        finally:
            os.close(ours)
        code = self._end(child)
        if end != "exit":
            return Run(output, end, 0)
        return Run(output, "signal" if code < 0 else "exit", abs(code))

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
        walls.apply(self._limits, own_user=self._isolated)
        start()

    def _watch(self, child: int, output: int) -> tuple[bytes, str]:
        """What comes until the program's first process ends: one that it left behind may hold the pipe for ever.

        An owner that hangs up wants no more of it.
        """
        data = bytearray()
        limit = self._limits.output_kb << 10
        poll = select.poll()
        process = os.pidfd_open(child)
        poll.register(output, select.POLLIN)
        poll.register(process, select.POLLIN)
        poll.register(self._owner, select.POLLHUP)
        os.set_blocking(output, False)
        ready: set[int] = set()
        try:
            while True:
                left = self._deadline - time.monotonic()
                if left <= 0 or self._owner in ready:
                    return bytes(data), "time"
                ready = {fd for fd, _ in poll.poll(left * 1000)}
                if output in ready and not self._take(output, data):
                    poll.unregister(output)
                if len(data) > limit:
                    return bytes(data[:limit]), "output"
                if process in ready:
                    while len(data) <= limit and self._take(output, data):
                        pass
                    return bytes(data[:limit]), "output" if len(data) > limit else "exit"
        finally:
            os.close(process)

    @staticmethod
    def _take(output: int, data: bytearray) -> bool:
        """Reads once. False at the end, and where there is nothing now."""
        try:
            piece = os.read(output, _PIECE)
        except BlockingIOError:
            return False
        data += piece
        return bool(piece)

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
        if self._isolated:
            yield -1  # all but ourselves, who are process 1
        else:
            for thread in Path("/proc/self/task").iterdir():
                yield from map(int, (thread / "children").read_text().split())
