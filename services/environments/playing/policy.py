"""The policy that plays: generation, asked for one turn at a time."""

import asyncio
import logging
import time
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

    def __init__(self, client: GenerationClient, seconds: float) -> None:
        """Args: seconds: for one turn: `environments.answer_seconds`."""
        self._client = client
        self._seconds = seconds

    async def generate(
        self, prompt: Prompt, *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """As `AsyncGenerationClient.generate`; what a generation that ends was sampling is sampled again.

        Raises:
            UnavailableError, DeadlineError: it has not answered in time.
            InvalidInputError, PreconditionError: it refuses the request.
        """
        began = time.monotonic()
        with metrics.TURN_SECONDS.time():
            while True:
                try:
                    return await self._client.generate(prompt, return_router=return_router, **sampling)
                except OverloadedError as error:  # nothing is wrong: others have the room now
                    await asyncio.sleep(error.retry_after)
                except UnavailableError:
                    if time.monotonic() - began > self._seconds:
                        raise
                    await asyncio.sleep(_PAUSE_SECONDS)

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
