"""Prompts wait for weights that are new enough for what is sampled from them to be trained on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import Engine

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.02


class Freshness:
    """Holds a prompt back until the engine serves the version that was announced last when the prompt came.

    The learner announces a version before it returns the tickets of the groups that it trained on, so the prompts that
    take these tickets reach generation before the version does. Behind as many groups as there are tickets, each will
    be trained on `run.max_staleness` steps after that version. Sampled at once, by the version before, it would be one
    too old by then, and dropped.
    """

    def __init__(
        self,
        engine: Engine,
        newest: Callable[[], Awaitable[pb.WeightsManifest | None]],
        refused: Callable[[], int],
        timeout_seconds: float,
    ) -> None:
        """
        Args:
            newest: gives the version last announced, None before the first.
            refused: gives the highest version that the engine was given and could not take. It is not waited for.
        """
        self._engine = engine
        self._newest = newest
        self._refused = refused
        self._timeout = timeout_seconds
        self._late = -1  # the version that was waited for in vain

    async def wait(self) -> bool:
        """Returns when the engine is fresh enough, or after `timeout_seconds`: sampling old tokens beats sampling none.

        Tells whether anything was waited for. A version that did not come in that time is not waited for again.
        """
        newest = await self._newest()
        if newest is None:
            return False
        needed = newest.version
        deadline = time.monotonic() + self._timeout
        waited = False
        while self._engine.version < needed and needed > max(self._late, self._refused()):
            if time.monotonic() > deadline:
                self._late = max(self._late, needed)
                log.warning(
                    "version %d is not served %g s after it was needed; version %d samples what the learner may drop "
                    "as stale", needed, self._timeout, self._engine.version,
                )  # fmt: skip
                return True
            waited = True
            await asyncio.sleep(_POLL_SECONDS)
        return waited
