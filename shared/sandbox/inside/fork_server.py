"""The fork server, and the processes that it forks for sandboxes.

The server is one process with everything loaded. For each order, the JSON of `Order` with the socket of a new sandbox,
it forks: a new interpreter would take longer than most programs. The sandbox prepares and says ["ready"], or
["error", why] and ends; either comes with a pidfd of its outermost process. Then it takes one job and is killed:
    ["programs", source, file, command, prelude]   then [input] for each run, answered by ["run", output, end, code]
    ["solution", source, prelude]   with a link: the program's end of a run of tests, never answered
    ["tests", [test, ...], entry_point]   with the other end of that link: answered by ["tests", lines, end]
    ["calls", function, [[arguments, [expected, ...]], ...], tolerance]   likewise
An owner that ends its sending side while a program runs ends the program; the answer says "time".
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.process.orphans import die_with_parent
from shared.sandbox.inside import frames, interpreter, limits, namespaces, programs, seccomp, solution, tests
from shared.sandbox.inside.limits import Limits

_PR_SET_CHILD_SUBREAPER = 36

ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Order:
    isolated: bool
    folders: Sequence[str]  # what programs may read beside the system's folders
    scratch: str  # their writable folder
    limits: dict[str, Any]


@dataclass(frozen=True)
class _Sandbox:
    owner: socket.socket
    runner: programs.Runner
    scratch: str
    links: Sequence[int]  # descriptors that came with the job


def main() -> None:
    """The server; argv: the descriptor of its socket, the process that owns it, and where our modules are."""
    orders, parent, modules = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    sys.path.remove(modules)  # programs must not find them
    sys.argv = [""]
    die_with_parent(parent)
    interpreter.warm()
    gc.freeze()  # a collection in a sandbox would copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    us = os.getpid()
    with contextlib.suppress(frames.BrokenLinkError):  # the owner is gone
        while True:
            order, (fd,) = frames.receive(orders)
            if not os.fork():
                orders.close()
                _sandbox(Order(**order), socket.socket(fileno=fd), us)
                return
            os.close(fd)


def _sandbox(order: Order, owner: socket.socket, server: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    outermost = os.pidfd_open(os.getpid())
    allowed = Limits(**order.limits)
    standard: int | None = None
    try:
        if order.isolated:
            standard = namespaces.enter(order.folders, allowed.scratch_mb, server)
        else:
            die_with_parent(server)
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
            os.chdir(order.scratch)
        limits.drop_privileges()
        seccomp.forbid()  # here, once and ahead of the program: the kernel takes a while over a filter
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
        runner = programs.Runner(allowed, owner.fileno(), standard)
        _JOBS[job[0]](_Sandbox(owner, runner, order.scratch, links), *job[1:])


def _programs(sandbox: _Sandbox, source: str, file: str, command: list[str], prelude: bool) -> None:
    path = Path(sandbox.scratch, file)
    arguments = [part.replace("{file}", str(path)) for part in command]
    start = programs.command(arguments, dict(os.environ)) if command else interpreter.python(str(path))
    if prelude:
        interpreter.add_prelude()  # here once, and not in every process that runs the program
    while True:
        (text,), _ = frames.receive(sandbox.owner)
        programs.clear(sandbox.scratch)  # no run sees what another one left
        path.write_text(source, encoding="utf-8", errors="replace")
        run = sandbox.runner.run(start, text.encode(errors="replace"))
        frames.send(sandbox.owner, ["run", run.output.decode(errors="replace"), run.end, run.code])


def _solution(sandbox: _Sandbox, source: str, prelude: bool) -> None:
    if prelude:
        interpreter.add_prelude()
    solution.write(sandbox.scratch, source)
    _linked(sandbox, lambda link: solution.serve(link, sandbox.scratch))


def _tests(sandbox: _Sandbox, sources: list[str], entry_point: str) -> None:
    _report(sandbox, lambda link: tests.run(link, sandbox.scratch, sources, entry_point))


def _calls(sandbox: _Sandbox, function: str, calls: list[Any], tolerance: float) -> None:
    _report(sandbox, lambda link: tests.call(link, function, calls, tolerance))


def _report(sandbox: _Sandbox, judge: Callable[[socket.socket], None]) -> None:
    run = _linked(sandbox, judge)
    frames.send(sandbox.owner, ["tests", run.output.decode(errors="replace"), run.end])


def _linked(sandbox: _Sandbox, serve: Callable[[socket.socket], None]) -> programs.Run:
    (fd,) = sandbox.links
    return sandbox.runner.run(partial(_serve, fd, serve), keep=[fd])


def _serve(fd: int, serve: Callable[[socket.socket], None]) -> None:
    serve(socket.socket(fileno=fd))


_JOBS: dict[str, Callable[..., None]] = {
    "programs": _programs, "solution": _solution, "tests": _tests, "calls": _calls
}  # fmt: skip
