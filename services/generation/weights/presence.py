"""Tells the learner that this replica is there to take weights over the network, and which version it has."""

import asyncio
import contextlib
import time
from uuid import uuid4

from services.generation.engines.base import Engine
from shared.errors import UnavailableError
from shared.streams.run import REPLICA_BEAT_SECONDS, Run

_LOOK_SECONDS = 0.2
_FAREWELL_SECONDS = 1.0


def replica_name(consumer: str) -> str:
    """A name unique to this process, so that a restart is not mistaken for its predecessor in a weight transfer."""
    return f"{consumer}-{uuid4().hex[:8]}"


async def beat(run: Run, name: str, engine: Engine) -> None:
    """Registers the replica every few seconds and after each update, until cancelled; then takes it off."""
    told, due = -1, 0.0
    try:
        while True:
            if engine.version != told or time.monotonic() >= due:
                told, due = engine.version, time.monotonic() + REPLICA_BEAT_SECONDS
                await run.register_replica(name, engine.info.workers, told)
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await run.remove_replica(name)
