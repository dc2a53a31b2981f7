"""A sandbox for programs that nobody trusts, from the outside.

A cell is a process in namespaces of its own (services/reward/cell), prepared and waiting; it takes one program and is
killed. `Cells` keeps some waiting, since preparing one takes longer than most programs. What a program can reach and
use is said in cell/namespaces.py and cell/limits.py. What comes out of a cell is data: no verdict is made inside.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from services.reward.sandbox.cell import frames
from services.reward.sandbox.cell.limits import Limits
from services.reward.sandbox.cell.namespaces import SCRATCH
from shared.errors import PreconditionError

_ROOT = str(Path(__file__).parents[3])
_BOOT = "import sys; sys.path.insert(0, sys.argv[3]); from services.reward.sandbox.cell.main import main; main()"
_PREPARE_SECONDS = 20.0
_GRACE_SECONDS = 2.0  # a cell keeps its own time; this is for the message, and for a machine that is late


class CellLostError(Exception):
    """The cell ended or fell silent before it answered."""


@dataclass(frozen=True)
class CellSettings:
    """What all cells of a verifier have in common."""

    limits: Limits
    isolated: bool = True
    folders: Sequence[str] = field(default=())


class Cell:
    """One cell, for one job. Use it as a context manager: the block ends with its death."""

    def __init__(self, owner: socket.socket, scratch: str, settings: CellSettings) -> None:
        self._owner = owner
        self._scratch = scratch
        self._settings = settings
        self._process: int | None = None  # a pidfd
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self) -> None:
        """Until it is prepared.

        Raises:
            PreconditionError: the platform does not isolate.
            CellLostError: it ended instead.
        """
        if self._process is None:
            answer, descriptors = self._receive(time.monotonic() + _PREPARE_SECONDS)
            (self._process,) = descriptors
            if answer[0] == "error":
                raise PreconditionError(
                    f"programs cannot be isolated here ({answer[1]}); allow user namespaces (in a container: "
                    "CAP_SYS_ADMIN and a seccomp profile that has unshare and mount), "
                    'or set isolation = "none" and trust every program'
                )

    def give(self, job: Sequence[Any], link: socket.socket | None = None) -> None:
        """Its one job; the link's descriptor goes along."""
        self.wait()
        self._began = time.monotonic()
        try:
            frames.send(self._owner, list(job), [link.fileno()] if link else [])
        except frames.BrokenLinkError as error:
            raise CellLostError(str(error)) from None

    def take(self) -> Any:
        """The next answer. Raises CellLostError."""
        return self._receive(self._began + self._settings.limits.seconds + _GRACE_SECONDS)[0]

    def kill(self, at_once: bool = False) -> None:
        """Ends it and all that it started. Does not wait: the kernel takes a while to clear namespaces away."""
        if at_once:
            self._signal(signal.SIGKILL)
            return
        with contextlib.suppress(CellLostError, PreconditionError):
            self.wait()
        self._owner.close()
        # Isolated, the outermost process passes SIGTERM on as the end of all. Else the cell does it when we hang up.
        if self._settings.isolated:
            self._signal(signal.SIGTERM)

    def gone(self, seconds: float = 0.0) -> bool:
        """After `kill`: whether it and all its processes are gone, waiting up to `seconds` for it."""
        if self._process is None:
            return True
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

    def _receive(self, deadline: float) -> tuple[Any, list[int]]:
        self._owner.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            return frames.receive(self._owner)
        except TimeoutError:
            raise CellLostError("the sandbox fell silent") from None
        except frames.BrokenLinkError as error:
            raise CellLostError(f"the sandbox ended: {error}") from None


class Cells:
    """Keeps cells waiting."""

    def __init__(self, settings: CellSettings, waiting: int) -> None:
        """Raises PreconditionError where the platform does not isolate."""
        self._settings = settings
        self._orders, theirs = socket.socketpair()
        with theirs:
            # The interpreter below the virtual environment, without its packages: programs see the same as it does.
            self._nursery = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-c", _BOOT,
                 str(theirs.fileno()), str(os.getpid()), _ROOT],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"}, cwd="/", pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._cells: deque[Cell] = deque()
        self._given: list[Cell] = []
        try:
            for _ in range(waiting):
                self._order()
            for cell in self._cells:
                cell.wait()
        except BaseException:
            self.close()
            raise

    def take(self) -> Cell:
        """The one that has waited longest; another one is being prepared meanwhile."""
        self._order()
        self._given = [cell for cell in self._given if not cell.gone()]
        cell = self._cells.popleft()
        self._given.append(cell)
        return cell

    def close(self) -> None:
        """Returns when all cells are gone; those that were taken must have been killed."""
        for cell in self._cells:
            cell.kill()
        for cell in (*self._given, *self._cells):
            if not cell.gone(_GRACE_SECONDS):
                cell.kill(at_once=True)
                cell.gone(_GRACE_SECONDS)
        self._orders.close()
        self._nursery.kill()
        self._nursery.wait()

    def _order(self) -> None:
        isolated = self._settings.isolated
        scratch = SCRATCH if isolated else tempfile.mkdtemp(prefix="cell-")
        ours, theirs = socket.socketpair()
        self._cells.append(Cell(ours, scratch, self._settings))
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
                raise CellLostError(f"the nursery of sandboxes ended: {error}") from None
