"""The nursery and its cells.

The nursery is one process with everything loaded. For each order, the JSON of `Order` with the socket of a new cell,
it forks: a new interpreter would take longer than most programs. The cell prepares and says ["ready"], or
["error", why] and ends; either comes with a pidfd of its outermost process. Then it takes one job and is killed:
    ["programs", source, file, command, [input, ...]]   answered by ["run", output, end, code] for each input
    ["solution", source]   with a link: the program's end of a run of tests, never answered
    ["tests", [test, ...], entry_point]   with the other end of that link: answered by ["tests", lines, end]
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from services.reward.sandbox.cell import frames, limits, namespaces, programs, solution, tests
from services.reward.sandbox.cell.limits import Limits
from shared.process.orphans import die_with_parent

_PR_SET_CHILD_SUBREAPER = 36

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Order:
    isolated: bool
    folders: Sequence[str]  # what programs may read beside the system's folders
    scratch: str  # their writable folder
    limits: dict[str, Any]


def main() -> None:
    """The nursery; argv: the descriptor of its socket, the process that owns it, and where our modules are."""
    orders, parent, modules = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    sys.path.remove(modules)  # programs must not find them
    sys.argv = [""]
    die_with_parent(parent)
    programs.warm()
    gc.freeze()  # a collection in a cell would copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    us = os.getpid()
    with contextlib.suppress(frames.BrokenLinkError):  # the owner is gone
        while True:
            order, (fd,) = frames.receive(orders)
            if not os.fork():
                orders.close()
                _cell(Order(**order), socket.socket(fileno=fd), us)
                return
            os.close(fd)


def _cell(order: Order, owner: socket.socket, nursery: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    outermost = os.pidfd_open(os.getpid())
    cell_limits = Limits(**order.limits)
    try:
        if order.isolated:
            namespaces.enter(order.folders, cell_limits.scratch_mb, nursery)
        else:
            die_with_parent(nursery)
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
            os.chdir(order.scratch)
        limits.drop_privileges()
    except OSError as error:
        frames.send(owner, ["error", str(error)], [outermost])
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(ENVIRONMENT, HOME=order.scratch, TMPDIR=order.scratch)
    with contextlib.suppress(frames.BrokenLinkError):  # the owner needs us no more
        frames.send(owner, ["ready"], [outermost])
        os.close(outermost)
        job, links = frames.receive(owner)
        deadline = time.monotonic() + cell_limits.seconds
        runner = programs.Runner(cell_limits, order.isolated, deadline, owner.fileno())
        _JOBS[job[0]](owner, runner, order.scratch, links, *job[1:])


def _programs(
    owner: socket.socket, runner: programs.Runner, scratch: str, links: list[int],
    source: str, file: str, command: list[str], inputs: list[str],
) -> None:  # fmt: skip
    path = Path(scratch, file)
    path.write_text(source, encoding="utf-8", errors="replace")
    arguments = [part.replace("{file}", str(path)) for part in command]
    start = programs.command(arguments, dict(os.environ)) if command else programs.python(str(path))
    for text in inputs:
        run = runner.run(start, text.encode(errors="replace"))
        frames.send(owner, ["run", run.output.decode(errors="replace"), run.end, run.code])


def _solution(
    owner: socket.socket, runner: programs.Runner, scratch: str, links: list[int], source: str
) -> None:  # fmt: skip
    solution.write(scratch, source)
    _linked(runner, links, lambda link: solution.serve(link, scratch))


def _tests(
    owner: socket.socket, runner: programs.Runner, scratch: str, links: list[int], sources: list[str], entry_point: str
) -> None:
    run = _linked(runner, links, lambda link: tests.main(link, scratch, sources, entry_point))
    frames.send(owner, ["tests", run.output.decode(errors="replace"), run.end])


def _linked(runner: programs.Runner, links: list[int], serve: Callable[[socket.socket], None]) -> programs.Run:
    (fd,) = links
    return runner.run(partial(_serve, fd, serve), keep=[fd])


def _serve(fd: int, serve: Callable[[socket.socket], None]) -> None:
    serve(socket.socket(fileno=fd))


_JOBS: dict[str, Callable[..., None]] = {"programs": _programs, "solution": _solution, "tests": _tests}
