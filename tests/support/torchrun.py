"""Runs a function of a test module on several ranks, each a process with the environment that torchrun gives it.

`python -m tests.support.torchrun MODULE FUNCTION [ARGUMENT...]` is one rank: it calls FUNCTION(ranks, *arguments).
"""

import contextlib
import importlib
import os
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
    with started(size, function, *arguments) as processes:
        end = time.monotonic() + timeout
        wrote = []
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                wrote.append(process.communicate(timeout=max(0.0, end - time.monotonic()))[1])
        codes = [process.poll() for process in processes]
        assert codes == [0] * size, f"{function.__name__}: exit codes {codes}\n" + "\n".join(wrote)


@contextlib.contextmanager
def started(size: int, function: Callable[..., Any], *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of all ranks; none is left afterwards."""
    port = free_port()
    processes = []
    try:
        for rank in range(size):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            processes.append(
                subprocess.Popen(
                    command(function, *arguments),
                    cwd=ROOT,
                    env=os.environ | QUIET | {name: str(value) for name, value in environment.items()},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


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


def main(module: str, function: str, *arguments: str) -> None:
    from services.learner.distributed.ranks import Ranks

    ranks = Ranks.open("cpu", _DEADLINE)
    getattr(importlib.import_module(module), function)(ranks, *arguments)
    ranks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
