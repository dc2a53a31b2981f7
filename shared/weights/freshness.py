"""Prompts wait for weights that are new enough for what is sampled from them to be trained on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from routershift.v1 import trajectory_pb2 as pb

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02  # where the version served is known in this process


class Freshness:
    """Holds a prompt back until generation serves the version that was announced last when the prompt came.

    The learner announces a version before it returns the tickets of the groups that it trained on, so the prompts that
    take these tickets reach generation before the version does. Behind as many groups as there are tickets, each will
    be trained on `run.max_staleness` steps after that version. Sampled at once, by the version before, it would be one
    too old by then, and dropped.

    Where that version does not come in time, one within `run.max_staleness` of it will do. What an older one samples is
    never trained on. With a `max_staleness` of 0 only the version itself will do, however long it takes.
    """

    def __init__(
        self,
        served: Callable[[], Awaitable[int]],
        newest: Callable[[], Awaitable[pb.WeightsManifest | None]],
        max_staleness: int,
        timeout_seconds: float,
        *,
        refused: Callable[[], int] = lambda: -1,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        """
        Args:
            served: gives the version that samples now.
            newest: gives the version last announced, None before the first.
            refused: gives the highest version that generation was given and could not take. It is not waited for.
            poll_seconds: between looks at the version served.
        """
        self._served = served
        self._newest = newest
        self._refused = refused
        self._max_staleness = max_staleness
        self._timeout = timeout_seconds
        self._poll = poll_seconds
        self._late = -1  # the version that was waited for in vain

    async def wait(self) -> bool:
        """Returns when what is sampled can be trained on: see above. Tells whether anything was waited for."""
        newest = await self._newest()
        if newest is None:
            return False
        deadline = time.monotonic() + self._timeout
        waited = False
        while (served := await self._served()) < self._needed(newest.version):
            if time.monotonic() > deadline and newest.version > self._late:
                self._late = newest.version
                log.warning(
                    "version %d is not served %g s after it was needed; %s",
                    newest.version, self._timeout, self._consequence(newest.version, served),
                )  # fmt: skip
                continue
            waited = True
            await asyncio.sleep(self._poll)
        return waited

    def _needed(self, newest: int) -> int:
        """The version to wait for. One that was refused will not come, and neither will those before it."""
        needed = newest if newest > self._late else newest - self._max_staleness
        return needed if needed > self._refused() else 0

    def _consequence(self, newest: int, served: int) -> str:
        oldest = newest - self._max_staleness
        if served < oldest:
            return (
                f"the learner trains on nothing older than version {oldest} (run.max_staleness {self._max_staleness}): "
                f"it is waited for, and version {served} samples nothing"
            )
        return f"version {served} samples what the learner may drop as stale"
