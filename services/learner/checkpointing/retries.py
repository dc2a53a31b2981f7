"""Writes that are tried again while a disk refuses them."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.learner import metrics
from services.learner.settings import Settings
from shared.errors import UnavailableError
from shared.files import refusal
from shared.streams.run import Run

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0


class Retries:
    """Attributes: is_refused: whether the last attempt of any write was refused."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self.is_refused = False
        self._seconds = settings.learner.checkpoints.disk_seconds
        self._run = run

    async def written(self, name: str, step: int, place: Path, write: Callable[[], T], stop: asyncio.Event) -> T:
        """Its result, when the disk has taken it; the last attempt is the first one after `stop`.

        Args:
            name: what is written, as the metric of refused writes has it.
            step: that it is of.

        Raises:
            PreconditionError: another process has become the learner of this run.
            UnavailableError: not within `disk_seconds`. What was durable before still is.
        """
        deadline = time.monotonic() + self._seconds
        pause, attempts = _FIRST_PAUSE_SECONDS, 1
        while True:
            # No script can fence a file: a process that was replaced while it stood still must learn of it before.
            await self._run.lease.confirm()
            try:
                result = await asyncio.to_thread(write)
            except Exception as error:
                refused = refusal(error)
                if refused is None:
                    raise
                self.is_refused = True
                metrics.REFUSED_WRITES.labels(name).inc()
                reason = (
                    f"{name.replace('_', ' ')} of step {step} not written to "
                    f"{refused.filename or place}: {refused.strerror or refused} (errno {refused.errno}); "
                    "free space there, or point run.folder at a disk that takes writes"
                )
                if stop.is_set() or time.monotonic() + pause > deadline:
                    raise UnavailableError(reason) from error
                log.error("attempt %d, the next one in %g s: %s", attempts, pause, reason)
            else:
                self.is_refused = False
                if attempts > 1:
                    log.warning("%s of step %d written by attempt %d", name, step, attempts)
                return result
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            attempts += 1
