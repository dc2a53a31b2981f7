"""CPU-seconds of a tree of processes by the service in it, and the cores that it may use."""

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.cli.local.redis import PROGRAMS

_TITLE = "routershift serve "


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU-seconds of a process and of all that it has started."""

    service: str
    seconds: float


def spent_by_process(root: int) -> dict[int, Spent]:
    """User and system time so far of a `routershift run` and of each process that it started, by process id."""
    run = psutil.Process(root)
    found = {root: Spent("supervisor", _own(run))}
    for child in run.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds = sum(map(with_ended, [child, *child.children(recursive=True)]))
            found[child.pid] = Spent(service_of(child), seconds)
    return found


def between(before: Mapping[int, Spent], after: Mapping[int, Spent]) -> dict[str, float]:
    """CPU-seconds of each service from one moment to another. A process has its last name: it begins without one."""
    spent: dict[str, float] = {}
    for pid, found in after.items():
        seconds = found.seconds - (before[pid].seconds if pid in before else 0.0)
        spent[found.service] = spent.get(found.service, 0.0) + seconds
    return spent


def service_of(process: psutil.Process) -> str:
    """`generation` of `routershift serve generation`, `redis` of a Redis or Valkey, else the name of the program."""
    title, name = " ".join(process.cmdline()), process.name()
    if title.startswith(_TITLE):
        return title.removeprefix(_TITLE).split()[0]
    return "redis" if name in PROGRAMS else name


def pin(root: int, alone: str, core: int, others: Collection[int]) -> None:
    """Gives a service of a `routershift run` a core of its own, and all other processes the rest.

    Threads that exist are moved; those that they start later inherit it.
    """
    run = psutil.Process(root)
    _pin(run, others)
    for child in run.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            cores = [core] if service_of(child) == alone else others
            for process in [child, *child.children(recursive=True)]:
                _pin(process, cores)


def _pin(process: psutil.Process, cores: Collection[int]) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def with_ended(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
