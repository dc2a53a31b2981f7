"""The watch over the engine: its load in the metrics, and a dead or wedged engine made a crash."""

import asyncio
import time

from services.generation import metrics
from services.generation.engines.base import Engine
from shared.errors import UnavailableError

_LOOK_SECONDS = 1.0


class EngineWatch:
    """Looks every second. What a supervisor is to see, it raises."""

    def __init__(self, engine: Engine, stall_seconds: float) -> None:
        """Args: stall_seconds: how long an engine with sequences may sample nothing, and one with new weights rest."""
        self._engine = engine
        self._stall_seconds = stall_seconds
        self._progress: tuple[int, float | None] = (engine.load.tokens, None)
        self._still = 0.0  # seconds without a token while there was something to sample
        self._preemptions = 0

    async def run(self) -> None:
        """Never returns.

        Raises:
            UnavailableError: the engine has died or stands still; the prompts that it held will be redelivered.
        """
        step = min(_LOOK_SECONDS, self._stall_seconds / 4)
        looked = time.monotonic()
        while True:
            if not await self._engine.healthy():
                raise UnavailableError("the engine has died; what it held will be redelivered")
            now = time.monotonic()
            # A process that was stopped itself has slept through many looks; they say nothing of its engine.
            self.look(min(now - looked, 2 * step))
            looked = now
            await asyncio.sleep(step)

    def look(self, seconds: float) -> None:
        """One look, so many seconds after the last. Raises UnavailableError where the engine stands still."""
        load = self._engine.load
        metrics.RUNNING.set(load.running)
        metrics.WAITING.set(load.waiting)
        metrics.KV_CACHE_USAGE.set(load.kv_cache_usage)
        metrics.PREEMPTIONS.inc(load.preemptions - self._preemptions)
        self._preemptions = load.preemptions
        idle = load.running + load.waiting == 0 and load.replacing is None
        progress = load.tokens, load.replacing
        if idle or progress != self._progress:
            self._progress, self._still = progress, 0.0
            return
        self._still += seconds
        if self._still > self._stall_seconds:
            raise UnavailableError(
                f"the engine has sampled nothing for {self._still:.0f} s, over generation.stall_seconds = "
                f"{self._stall_seconds:g} (raise that if it is slow), "
                f"with {load.running} sequences running and {load.waiting} waiting"
                f"{'' if load.replacing is None else ', and does nothing about the new weights'}; what it held will be "
                "redelivered"
            )
