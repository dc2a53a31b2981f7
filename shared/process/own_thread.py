"""Calls that one thread takes."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OwnThread:
    """As `asyncio.to_thread`, with the same thread each time: another cannot use what malloc and OpenMP keep for it."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    async def run(self, call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What the call returns or raises; it sees the context variables of the caller."""
        made = partial(contextvars.copy_context().run, call, *args, **options)
        return await asyncio.get_running_loop().run_in_executor(self._pool, made)

    def close(self) -> None:
        """Waits for the calls that were made."""
        self._pool.shutdown()
