"""How much time a tree of processes has used, from /proc, and when it has had enough.

Three clocks. Time on processors counts for all processes together. Idle time is what is left of the wall clock when
that, and the time in which its threads stood in line for a processor, are taken off: a program that sleeps uses it up,
one on a busy machine does not. And where the wall clock says that the machine was too busy to tell, nobody is to blame.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import PreconditionError
from shared.sandbox.inside.limits import Limits

_TICKS = os.sysconf("SC_CLK_TCK")
_NICE_STEP = 1.25  # one step of niceness changes the weight of a thread by about this
_MAX_NICE = 19


class ContentionError(Exception):
    """The machine was too busy for the program to use its time."""


@dataclass(frozen=True)
class Usage:
    """Seconds since the first process began; seconds of processes that nobody waited for are missing."""

    on_processors: float
    in_line: dict[int, float]  # by thread: waiting for a processor
    runnable: list[int]  # threads that are on a processor, or wait for one


def require() -> None:
    """Raises PreconditionError where the kernel does not tell what processes use."""
    own = Path("/proc/self/task", str(os.getpid()))
    if missing := [name for name in ("children", "schedstat") if not (own / name).exists()]:
        raise PreconditionError(
            f"programs cannot be timed here: {own} has no {' and no '.join(missing)}; mount /proc, and run a kernel "
            "with CONFIG_PROC_CHILDREN and CONFIG_SCHED_INFO"
        )


def usage(roots: Sequence[int]) -> Usage:
    """What these processes and all their descendants have used."""
    seconds, in_line, runnable = 0.0, dict[int, float](), list[int]()
    for process in _tree(roots):
        try:
            fields = _stat(process / "stat")
            seconds += sum(map(int, fields[11:15])) / _TICKS  # utime, stime, and of its children that are gone
            for thread in (process / "task").iterdir():
                number = int(thread.name)
                in_line[number] = int((thread / "schedstat").read_text().split()[1]) * 1e-9
                if _stat(thread / "stat")[0] == "R":
                    runnable.append(number)
        except (OSError, IndexError):  # it ended meanwhile, or this kernel does not say
            continue
    return Usage(seconds, in_line, runnable)


class Clock:
    """Times one program from its making on."""

    def __init__(self, limits: Limits, roots: Sequence[int]) -> None:
        self._limits = limits
        self._roots = roots
        self._began = self._last = time.monotonic()
        self._used = Usage(0.0, {}, [])
        self._on_processors = 0.0
        self._idle = 0.0

    def over(self) -> bool:
        """Looks, and says whether the program's time is up. Makes one that runs in many threads yield to others.

        Raises:
            ContentionError: it is not, but the wall clock says that it will not get it.
        """
        now, used = time.monotonic(), usage(self._roots)
        worked = max(used.on_processors - self._used.on_processors, 0.0)
        waited = sum(max(s - self._used.in_line.get(thread, 0.0), 0.0) for thread, s in used.in_line.items())
        if not used.runnable:  # else it is in line now, which is not counted yet
            self._idle += max(now - self._last - worked - waited, 0.0)
        self._on_processors += worked
        self._last, self._used = now, used
        if self._on_processors >= self._limits.seconds or self._idle >= self._limits.idle_seconds:
            return True
        if now - self._began >= self._limits.wall_seconds:
            raise ContentionError(
                f"the machine is too busy: in {now - self._began:.0f} s a program had a processor for only "
                f"{self._on_processors:.2f} of its {self._limits.seconds:g} s; raise timeout_seconds, or lower the load"
            )
        _share(used.runnable)
        return False


def _share(threads: Sequence[int]) -> None:
    """Gives threads that run at the same time the weight of one, so that their number takes nothing from others."""
    niceness = min(round(math.log(max(len(threads), 1), _NICE_STEP)), _MAX_NICE)
    for thread in threads if niceness else ():
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
        except OSError:  # it ended, or is not ours to change
            continue


def _tree(roots: Sequence[int]) -> Iterator[Path]:
    left = list(roots)
    while left:
        process = Path("/proc", str(left.pop()))
        yield process
        try:
            for thread in (process / "task").iterdir():
                left += map(int, (thread / "children").read_text().split())
        except OSError:
            continue


def _stat(path: Path) -> list[str]:
    """The fields from the third on, the state: the second one, the name, may hold anything."""
    return path.read_text(errors="replace").rpartition(") ")[2].split()
