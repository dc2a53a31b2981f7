"""What tests do with an engine of any kind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from routershift.trajectory import Completion
from services.generation.engines.base import Engine, EngineSampling, Files

PROMPTS = [[5], [3, 7, 11], [2, 9, 4, 21, 17, 6, 8], [10, 12] * 12]
PROMPT = PROMPTS[2]
SLOTS = 10  # of MAX_MODEL_LEN tokens each: more than one step of vLLM takes


class MakeEngine(Protocol):
    def __call__(self, folder: Path, **changes: Any) -> Engine:
        """An engine, not started. `changes` go to `EngineOptions`."""
        ...


def params(
    n: int = 1, temperature: float = 1.0, max_tokens: int = 24, seed: int | None = 1, **rest: Any
) -> EngineSampling:
    return replace(EngineSampling(n, temperature, 1.0, 0, max_tokens, seed), **rest)


def busy(engine: Engine) -> tuple[int, int]:
    return engine.load.running, engine.load.waiting


async def publish(engine: Engine, folder: Path) -> int:
    """Has it serve the weights in `folder` as its next version, whatever a test before left behind."""
    version = engine.version + 1
    assert await engine.update_weights(version, Files([folder / "model.safetensors"])) > 0
    assert engine.version == version
    return version


@asynccontextmanager
async def started(engine: Engine) -> AsyncIterator[Engine]:
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def restored(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """Serves the weights in `folder` again afterwards, for the tests that come next."""
    try:
        yield
    finally:
        await publish(engine, folder)


async def collect(engine: Engine, prompt: list[int], sampling: EngineSampling) -> dict[int, list[Completion]]:
    """The pieces of a stream by sample."""
    pieces: dict[int, list[Completion]] = {index: [] for index in range(sampling.n)}
    async for piece in engine.stream(prompt, sampling):
        pieces[piece.index].append(piece)
    return pieces


async def whole(engine: Engine, prompt: list[int], sampling: EngineSampling, streamed: bool) -> list[Completion]:
    """The samples, with the pieces of each put together."""
    if not streamed:
        return await engine.generate(prompt, sampling)
    return [joined(pieces) for pieces in (await collect(engine, prompt, sampling)).values()]


def joined(pieces: list[Completion]) -> Completion:
    """All pieces of one sample as one, without its top log-probs."""
    return replace(
        pieces[-1],
        token_ids=np.concatenate([piece.token_ids for piece in pieces]),
        logprobs=np.concatenate([piece.logprobs for piece in pieces]),
        versions=tuple(span for piece in pieces for span in piece.versions),
        top_logprobs=None,
    )
