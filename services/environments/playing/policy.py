"""The policy that plays: generation, asked for one turn at a time."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Unpack

from routershift.client.requests import Prompt, Sampling
from routershift.trajectory import Completion
from routershift.v1 import generation_pb2 as gen
from services.environments import metrics
from shared.clients import GenerationClient
from shared.errors import DeadlineError, OverloadedError, UnavailableError

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_REMIND_SECONDS = 60.0
_AWAY_SECONDS = 3.0  # in which a generation that is there says what it serves


class Policy:
    """Asks generation, and waits for it where it has no room or is started again."""

    def __init__(self, client: GenerationClient, seconds: float, *, full_seconds: float = math.inf) -> None:
        """
        Args:
            seconds: for one turn: `environments.answer_seconds`.
            full_seconds: how long it waits for room, where nothing else ends the turn.
        """
        self._client = client
        self._seconds = seconds
        self._full_seconds = full_seconds

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """As `AsyncGenerationClient.generate`; what a generation that ends was sampling is sampled again.

        Raises:
            UnavailableError, DeadlineError, OverloadedError: it has not answered in time.
            InvalidInputError, PreconditionError: it refuses the request.
        """
        began = time.monotonic()
        with metrics.TURN_SECONDS.time():
            while True:
                try:
                    return await self._client.generate(prompt, return_router=return_router, **sampling)
                except (OverloadedError, UnavailableError) as error:
                    await self._pause(error, began)

    async def stream(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        """As `generate`, in pieces. Once one has come, what fails is raised: it was told already."""
        began = time.monotonic()
        while True:
            pieces = self._client.stream(prompt, return_router=return_router, **sampling)
            async with aclosing(pieces):  # type: ignore[type-var]  # it is a generator
                try:
                    first = await anext(pieces, None)
                except (OverloadedError, UnavailableError) as error:
                    await self._pause(error, began)
                    continue
                if first is not None:
                    yield first
                async for piece in pieces:
                    yield piece
                return

    async def _pause(self, error: OverloadedError | UnavailableError, began: float) -> None:
        """Before it is asked again. Raises the error where there is no time left."""
        is_full = isinstance(error, OverloadedError)  # nothing is wrong: others have the room now
        if time.monotonic() - began > (self._full_seconds if is_full else self._seconds):
            raise error
        await asyncio.sleep(error.retry_after if isinstance(error, OverloadedError) else _PAUSE_SECONDS)

    async def away(self) -> None:
        """Returns as soon as generation does not answer, or does not serve any more."""
        while True:
            try:
                async with asyncio.timeout(_AWAY_SECONDS):
                    await self._client.status()
            except (UnavailableError, DeadlineError, TimeoutError):
                return
            except OverloadedError:
                pass
            await asyncio.sleep(_PAUSE_SECONDS)

    async def version(self) -> int:
        """The version that serves, as soon as one does."""
        return int((await self.status()).version)

    async def status(self) -> gen.GenerationServiceGetStatusResponse:
        """What serves, as soon as something does."""
        reminded = -_REMIND_SECONDS
        while True:
            try:
                return await self._client.status()
            except (UnavailableError, DeadlineError, OverloadedError) as error:
                if time.monotonic() > reminded + _REMIND_SECONDS:
                    log.warning("waiting for generation: %s", error)
                    reminded = time.monotonic()
                await asyncio.sleep(_PAUSE_SECONDS)
