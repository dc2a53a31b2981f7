"""Sandboxes with little of everything, and programs in them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil

from shared.sandbox.inside.limits import Limits
from shared.sandbox.sandbox import Sandbox, Sandboxes, SandboxSettings

SECONDS = 1.0
WAITING = 2
LIMITS = Limits(memory_mb=160, processes=8, scratch_mb=4, output_kb=64, seconds=SECONDS)


def processes() -> set[int]:
    """All processes that descend from this one and were made from the fork server's command."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("fork_server" in part for part in process.cmdline()):
                found.add(process.pid)
    return found


def answers(sandbox: Sandbox, program: str, *texts: str) -> list[Any]:
    """Runs a program on each of these inputs."""
    clock = sandbox.clock()
    sandbox.give(["programs", program, "main.py", [], False])
    taken = []
    for text in texts:
        sandbox.give([text])
        taken.append(sandbox.take(clock))
    return taken


def run(sandboxes: Sandboxes, program: str, text: str = "") -> tuple[str, str, int]:
    """What it printed, how it ended, and the code of that."""
    with sandboxes.take() as sandbox:
        kind, output, end, code = answers(sandbox, program, text)[0]
    assert kind == "run"
    return output, end, code


@contextlib.contextmanager
def made(limits: Limits) -> Iterator[Sandboxes]:
    sandboxes = Sandboxes(SandboxSettings(limits), 1)
    try:
        yield sandboxes
    finally:
        sandboxes.close()
