"""Several samples at a time, none of which outlives the one who asked for them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

from routershift.trajectory import Completion


async def merged(samples: Sequence[AsyncIterator[Completion]]) -> AsyncGenerator[Completion]:
    """The pieces of all samples as they come. Raises what one of them raises; the others are cancelled then."""
    pieces: asyncio.Queue[Completion | Exception | None] = asyncio.Queue()

    async def pump(sample: AsyncIterator[Completion]) -> None:
        try:
            async for piece in sample:
                pieces.put_nowait(piece)
            pieces.put_nowait(None)
        except Exception as error:
            pieces.put_nowait(error)

    tasks = [asyncio.create_task(pump(sample)) for sample in samples]
    try:
        unfinished = len(tasks)
        while unfinished:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                unfinished -= 1
            else:
                yield piece
    finally:
        await _cancel(tasks)


async def gathered(samples: Sequence[AsyncIterator[Completion]]) -> list[Completion]:
    """The one piece of each sample, in their order. Raises as `merged` does."""

    async def whole(sample: AsyncIterator[Completion]) -> Completion:
        (completion,) = [piece async for piece in sample]
        return completion

    tasks = [asyncio.create_task(whole(sample)) for sample in samples]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels those that still run, and waits until they have freed what they hold."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
