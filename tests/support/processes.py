"""Processes that a test started, and those that they started in turn: they share a mark in their environment."""

import contextlib
import re
from pathlib import Path

import psutil

from services.cli.local.redis import PROGRAMS

_VARIABLE = "TEST_MARK"


def marked(mark: str) -> dict[str, str]:
    """What to add to the environment of the first of them."""
    return {_VARIABLE: mark}


def running(mark: str) -> list[psutil.Process]:
    """Those that have not ended.

    Read as bytes: a process that gives itself a title writes over the front of its environment, and psutil reads no
    further than that.
    """
    wanted = f"{_VARIABLE}={mark}\0".encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            its_own = wanted in Path(f"/proc/{process.pid}/environ").read_bytes()
            if its_own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(mark: str) -> None:
    for process in running(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def redis_socket(pid: int) -> str:
    """The socket of the Redis that the `routershift run` of this process has started, by its command line."""
    for process in psutil.Process(pid).children(recursive=True):
        line = " ".join(process.cmdline())
        if any(program in line for program in PROGRAMS) and (found := re.search(r"/\S*redis\.sock", line)):
            return found[0]
    raise AssertionError("the run has no Redis")
