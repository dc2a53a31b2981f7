"""Cells of the sandbox with little of everything, and a program in one of them."""

import contextlib

import psutil

from services.reward.sandbox.cell.limits import Limits
from services.reward.sandbox.cells import Cells

SECONDS = 1.0
WAITING = 2
LIMITS = Limits(memory_mb=160, processes=8, scratch_mb=4, output_kb=64, seconds=SECONDS)


def processes() -> set[int]:
    """All processes that descend from this one and were made from the nursery's command."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("cell.main" in part for part in process.cmdline()):
                found.add(process.pid)
    return found


def run(cells: Cells, program: str, text: str = "") -> tuple[str, str, int]:
    """What it printed, how it ended, and the code of that."""
    with cells.take() as cell:
        cell.give(["programs", program, "main.py", [], [text]])
        kind, output, end, code = cell.take()
    assert kind == "run"
    return output, end, code
