"""Runs a function of a test module on several ranks, each a process with the environment that torchrun gives it.

`python -m tests.support.torchrun MODULE FUNCTION [ARGUMENT...]` is one rank: it calls FUNCTION(ranks, *arguments).
Where the environment names no RANK, it forks all WORLD_SIZE of them.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Of the collectives: what goes wrong in a test is to be seen soon.
_DEADLINE = timedelta(seconds=60)
QUIET = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run(size: int, function: Callable[..., Any], *arguments: object, timeout: float = 200) -> None:
    """Raises AssertionError, with what they wrote to stderr, where some rank fails or is not done in time."""
    environment = os.environ | QUIET | {"WORLD_SIZE": str(size)}
    process = subprocess.Popen(
        command(function, *arguments),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    late = ""
    try:
        wrote = process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        wrote, late = process.communicate()[1], f", not done within {timeout:.0f} s"
    assert process.returncode == 0, f"{function.__name__} on {size} ranks{late}:\n{wrote}"


@contextlib.contextmanager
def started(size: int, function: Callable[..., Any], *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of all ranks; none is left afterwards."""
    port = free_port()
    processes = []
    try:
        for rank in range(size):
            processes.append(
                subprocess.Popen(
                    command(function, *arguments),
                    cwd=ROOT,
                    env=os.environ | QUIET | _place(rank, size, port),
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _place(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank of itself."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def command(function: Callable[..., Any], *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tests.support.torchrun",
        function.__module__,
        function.__name__,
        *map(str, arguments),
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def until(true: Callable[[], bool], timeout: float = 60) -> None:
    """Raises AssertionError where it does not become true in time."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def one(module: str, function: str, *arguments: str) -> None:
    from services.learner.distributed.ranks import Ranks

    ranks = Ranks.open("cpu", _DEADLINE)
    getattr(importlib.import_module(module), function)(ranks, *arguments)
    ranks.close()


def _fork(place: dict[str, str], arguments: list[str]) -> None:
    os.environ |= place
    one(*arguments)


def all_of_them(size: int, module: str, *arguments: str) -> int:
    """Forks the ranks once torch and the module are imported, which takes longer than most of what they do."""
    importlib.import_module(module)
    port, context = free_port(), multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_fork, args=(_place(rank, size, port), [module, *arguments])) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    if "RANK" in os.environ:
        one(*sys.argv[1:])
    else:
        sys.exit(all_of_them(int(os.environ["WORLD_SIZE"]), *sys.argv[1:]))
