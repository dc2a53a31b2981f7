"""A sandbox for programs that nobody trusts, from the outside.

A sandbox is a process in namespaces of its own (shared/sandbox/inside), prepared and waiting; it takes one job
and is killed. `Sandboxes` keeps some waiting, since preparing one takes longer than most programs. What a program can
reach and use is said in inside/namespaces.py, inside/limits.py and inside/seccomp.py, how long it may take in usage.py.
What comes out of a sandbox is data: no verdict is made inside.
"""

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from shared.errors import PreconditionError
from shared.sandbox.inside import frames
from shared.sandbox.inside.limits import Limits
from shared.sandbox.inside.namespaces import SCRATCH
from shared.sandbox.usage import Clock, require

log = logging.getLogger(__name__)

_ROOT = str(Path(__file__).parents[2])
_BOOT = "import sys; sys.path.insert(0, sys.argv[3]); from shared.sandbox.inside.fork_server import main; main()"
_PREPARE_SECONDS = 60.0
_TICK_SECONDS = 0.05  # how often we look at what a program has used
_GRACE_SECONDS = 10.0  # for the answer of a sandbox whose program's time is up; and for the end of one that was killed
_STARTS = 3  # attempts to have a sandbox


class SandboxLostError(Exception):
    """The sandbox ended or fell silent before it answered."""


@dataclass(frozen=True)
class SandboxSettings:
    """What all sandboxes of a verifier have in common."""

    limits: Limits
    isolated: bool = True
    folders: Sequence[str] = field(default=())


class Sandbox:
    """One sandbox, for one job. Use it as a context manager: the block ends with its death."""

    def __init__(self, owner: socket.socket, scratch: str, settings: SandboxSettings) -> None:
        self._owner = owner
        self._scratch = scratch
        self._settings = settings
        self._process: int | None = None  # a pidfd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self) -> None:
        """Until it is prepared.

        Raises:
            PreconditionError: the platform does not isolate.
            SandboxLostError: it ended instead.
        """
        if self._process is None:
            answer, descriptors = self._receive(_PREPARE_SECONDS)
            (self._process,) = descriptors
            if answer[0] == "error":
                raise PreconditionError(
                    f"programs cannot be isolated here ({answer[1]}); allow user namespaces (in a container: "
                    "CAP_SYS_ADMIN and a seccomp profile that has unshare and mount), "
                    'or set isolation = "none" and trust every program'
                )

    def give(self, message: Sequence[Any], link: socket.socket | None = None) -> None:
        """Its one job, or an input of it; the link's descriptor goes along.

        Raises:
            SandboxLostError: there is nobody to take it.
        """
        self.wait()
        try:
            frames.send(self._owner, list(message), [link.fileno()] if link else [])
        except frames.BrokenLinkError as error:
            raise SandboxLostError(str(error)) from None

    def clock(self, *others: "Sandbox") -> Clock:
        """A clock for the program that runs here, and in these others."""
        return Clock(self._settings.limits, [sandbox.pid for sandbox in (self, *others)])

    def take(self, clock: Clock) -> Any:
        """The next answer. Once the program's time is up, it is stopped, and the answer is what there is.

        Raises:
            SandboxLostError: there is none.
            ContentionError: the machine is too busy to tell.
        """
        while not select.select([self._owner], [], [], _TICK_SECONDS)[0]:
            if clock.over():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    self._owner.shutdown(socket.SHUT_WR)
                break
        return self._receive(_GRACE_SECONDS)[0]

    @property
    def pid(self) -> int:
        """Its outermost process; all others descend from it. The number may be of another one once it is gone."""
        self.wait()
        lines = Path(f"/proc/self/fdinfo/{self._process}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))

    def kill(self, at_once: bool = False) -> None:
        """Ends it and all that it started. Does not wait: the kernel takes a while to clear namespaces away."""
        if at_once:
            self._signal(signal.SIGKILL)
            return
        with contextlib.suppress(SandboxLostError, PreconditionError):
            self.wait()
        self._owner.close()
        # Isolated, the outermost process passes SIGTERM on as the end of all. Else the sandbox does it when we hang up.
        if self._settings.isolated:
            self._signal(signal.SIGTERM)

    def gone(self, seconds: float = 0.0) -> bool:
        """After `kill`: whether it and all its processes are gone, waiting up to `seconds` for it."""
        if self._process is not None:
            if not select.select([self._process], [], [], seconds)[0]:
                return False
            os.close(self._process)
            self._process = None
        if not self._settings.isolated:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                signal.pidfd_send_signal(self._process, number)

    def _receive(self, seconds: float) -> tuple[Any, list[int]]:
        self._owner.settimeout(seconds)
        try:
            return frames.receive(self._owner)
        except TimeoutError:
            raise SandboxLostError("the sandbox fell silent") from None
        except frames.BrokenLinkError as error:
            raise SandboxLostError(f"the sandbox ended: {error}") from None


class Sandboxes:
    """Keeps sandboxes waiting, and the process that forks them alive."""

    def __init__(self, settings: SandboxSettings, waiting: int) -> None:
        """Raises PreconditionError where the platform does not isolate."""
        self._settings = settings
        self._size = waiting
        self._waiting: deque[Sandbox] = deque()
        self._given: list[Sandbox] = []
        require()
        self._launch()
        try:
            for _ in range(waiting):
                self._order()
            for sandbox in self._waiting:
                sandbox.wait()
        except BaseException:
            self.close()
            raise

    def take(self) -> Sandbox:
        """The one that has waited longest, prepared; another one is being prepared meanwhile.

        Raises:
            SandboxLostError: the fork server, or what it forks, ends again and again.
        """
        for _ in range(_STARTS + len(self._waiting)):
            try:
                if not self.alive:
                    self._restart()
                self._order()
                self._given = [sandbox for sandbox in self._given if not sandbox.gone()]
                sandbox = self._waiting.popleft()
                self._given.append(sandbox)
                sandbox.wait()
                if not sandbox.gone():
                    return sandbox
                raise SandboxLostError("it ended while it waited")
            except SandboxLostError as error:
                log.warning("a sandbox was lost before it had a program: %s", error)
                last = error
        raise last

    @property
    def alive(self) -> bool:
        """Whether the fork server is; its sandboxes die with it."""
        return self._server.poll() is None

    def close(self) -> None:
        """Returns when all sandboxes are gone; those that were taken must have been killed."""
        for sandbox in self._waiting:
            sandbox.kill()
        self._await_end()
        self._stop()

    def _launch(self) -> None:
        self._orders, theirs = socket.socketpair()
        with theirs:
            # The interpreter below the virtual environment, without its packages: programs see the same as it does.
            self._server = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-c", _BOOT,
                 str(theirs.fileno()), str(os.getpid()), _ROOT],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"}, cwd="/", pass_fds=[theirs.fileno()],
            )  # fmt: skip

    def _restart(self) -> None:
        log.warning("the fork server of the sandboxes ended with %s; starting another one", self._server.returncode)
        for sandbox in self._waiting:
            sandbox.kill(at_once=True)
        self._await_end()
        self._stop()
        self._launch()
        for _ in range(self._size):
            self._order()

    def _await_end(self) -> None:
        for sandbox in (*self._given, *self._waiting):
            if not sandbox.gone(_GRACE_SECONDS):
                sandbox.kill(at_once=True)
                sandbox.gone(_GRACE_SECONDS)
        self._given.clear()
        self._waiting.clear()

    def _stop(self) -> None:
        self._orders.close()
        self._server.kill()
        self._server.wait()

    def _order(self) -> None:
        isolated = self._settings.isolated
        scratch = SCRATCH if isolated else tempfile.mkdtemp(prefix="sandbox-")
        ours, theirs = socket.socketpair()
        self._waiting.append(Sandbox(ours, scratch, self._settings))
        order = {
            "isolated": isolated,
            "folders": [sys.base_prefix, *self._settings.folders],
            "scratch": scratch,
            "limits": asdict(self._settings.limits),
        }
        with theirs:
            try:
                frames.send(self._orders, order, [theirs.fileno()])
            except frames.BrokenLinkError as error:
                raise SandboxLostError(f"the fork server of the sandboxes ended: {error}") from None
