"""The service's end of a worker process."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Self, cast

from services.reward.limits import ended
from services.reward.pool.progress import Progress
from services.reward.printed import Printed
from services.reward.verifiers.base import Item, Verifier
from shared import errors
from shared.process.variables import of_workers
from shared.values import one_line

# One line holds a chunk; a chunk holds at most a gRPC message.
_MAX_LINE_BYTES = 256 << 20
_STOP_SECONDS = 2.0
_MAX_SAID_CHARACTERS = 500  # of what a process printed last, in the message of its death


class WorkerDiedError(Exception):
    """The process ended by itself; the message says how."""


class Report(NamedTuple):
    """Results of consecutive items; see `services.reward.pool.process`."""

    last: bool  # of what was sent
    first: int
    verdicts: list[Any]
    which: list[int]
    micros: list[int]


class Worker:
    """A process that judges with one verifier, in a session of its own, so that it is killed with its children."""

    def __init__(
        self, process: asyncio.subprocess.Process, progress: Progress, printed: Printed, memory_mb: int
    ) -> None:
        self._process = process
        self._memory_mb = memory_mb
        self._requests = cast(asyncio.StreamWriter, process.stdin)  # both are pipes
        self._answers = cast(asyncio.StreamReader, process.stdout)
        self._progress = progress
        self._printed = printed
        self._first = self.next = 0  # items have consecutive numbers for the worker's life
        self._sent = 0.0

    @classmethod
    async def start(cls, name: str, verifier: Verifier, memory_mb: int, printed_kb: int) -> Self:
        """Starts the process and waits until its verifier is ready.

        Args:
            memory_mb: what it may allocate, in MiB.
            printed_kb: what it may print for one item, in KiB.

        Raises:
            RouterShiftError: what the verifier raised; a PreconditionError where its class is not of shared.errors.
            WorkerDiedError: the process ended instead, or took longer than the verifier's `start_seconds`.
        """
        settings = verifier.settings
        progress, printed = Progress.create(), Printed.create(printed_kb << 10)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "services.reward.pool.process",
                str(os.getpid()), str(progress.fd), str(printed.fd),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_MAX_LINE_BYTES,
                env=of_workers(settings.environment), pass_fds=[progress.fd, printed.fd], start_new_session=True,
            )  # fmt: skip
        except BaseException:
            progress.close()
            printed.close()
            raise
        worker = cls(process, progress, printed, memory_mb)
        try:
            async with asyncio.timeout(settings.start_seconds):
                await worker._order(name, verifier)
        except TimeoutError:
            await worker.kill()
            raise WorkerDiedError(
                f"its process was not ready within {settings.start_seconds:g} s; raise start_seconds in its table"
            ) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, items: Sequence[Item]) -> None:
        """Has them judged, as items `next` and on."""
        self._first = self.next
        self.next += len(items)
        self._progress.end = self.next
        self._sent = time.monotonic()
        await self._send([self._first, items])

    async def receive(self) -> Report:
        """The next results. May be cancelled without loss."""
        return Report(*await self._receive())

    @property
    def current(self) -> int | None:
        """The item being judged; None before the first of those sent."""
        item = self._progress.item
        return item if item >= self._first else None

    @property
    def age(self) -> float:
        """Seconds spent on the current item, or since the sending."""
        return time.monotonic() - max(self._progress.began, self._sent)

    def take_back(self) -> None:
        """It begins no more of what was sent."""
        self._progress.end = self._first

    async def stop(self) -> None:
        """Lets it close its verifier; for one that has nothing to do."""
        self._requests.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to it and its children; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._requests.close()
        await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await self._answers.read()
            await self._requests.wait_closed()
        self._progress.close()
        self._printed.close()

    async def _order(self, name: str, verifier: Verifier) -> None:
        """Has the process make the verifier; raises as `start` does."""
        kind = type(verifier)
        await self._send(
            {
                "name": name,
                "class": f"{kind.__module__}:{kind.__qualname__}",
                "settings": verifier.settings.model_dump(mode="json"),
                "memory_mb": self._memory_mb,
            }
        )
        error = (await self._receive())["error"]
        if error is not None:
            raise getattr(errors, error[0], errors.PreconditionError)(error[1])

    async def _send(self, message: Any) -> None:
        self._requests.write(json.dumps(message).encode() + b"\n")
        try:
            await self._requests.drain()
        except ConnectionError:
            raise WorkerDiedError(await self._end()) from None

    async def _receive(self) -> Any:
        line = await self._answers.readline()
        if not line.endswith(b"\n"):
            raise WorkerDiedError(await self._end())
        return json.loads(line)

    async def _end(self) -> str:
        how = ended(await self._process.wait(), self._memory_mb)
        last = one_line(self._printed.tail, _MAX_SAID_CHARACTERS)
        return f"its process ended with {how}" + (f", and had printed: {last}" if last else "")
