"""A pool of worker processes whose verifier does as the response says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.reward.outcomes import Scored
from services.reward.pool.pool import Pool
from services.reward.verifiers.base import Verifier
from tests.support.verifiers import ScriptedSettings, ScriptedVerifier, item


@asynccontextmanager
async def pool(
    kind: type[Verifier] = ScriptedVerifier,
    processes: int = 2,
    timeout: float = 10.0,
    memory_mb: int = 512,
    printed_kb: int = 64,
    **settings: Any,
) -> AsyncIterator[Pool]:
    verifier = kind(ScriptedSettings(**settings))
    made = Pool(
        "scripted",
        verifier,
        processes=processes,
        timeout_seconds=timeout,
        memory_mb=memory_mb,
        printed_kb=printed_kb,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def judge(made: Pool, *responses: str) -> list[Scored]:
    return await made.judge([item(r) for r in responses])
