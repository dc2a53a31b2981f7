"""How the requests of callers come in: a few at a time, and each within its time.

gRPC keeps in memory what has come of a message until all of it is there, and tells nobody how much that is. So the
number of messages that are read at once is bounded, and with it the memory. What waits for its turn stays with its
sender, but for a window of 64 KiB.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from shared.errors import DeadlineError, OverloadedError
from shared.settings import ServerSettings

T = TypeVar("T")

# A request that is sent in one piece is there by then. One that is not has to find room among the slow ones.
_PROMPT_SECONDS = 0.25
_OF_ONE_CONNECTION = 2


class Arrivals:
    """The requests that are on their way in to one server."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._all = asyncio.Semaphore(settings.max_receiving)
        self._slow = max(1, settings.max_receiving // 2)  # the others are free again within `_PROMPT_SECONDS`
        self._connections: dict[str, tuple[asyncio.Semaphore, int]] = {}  # and how many hold or want it

    async def receive(self, connection: str, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` gives, called when it is its turn.

        Args:
            connection: address and port of the caller.

        Raises:
            DeadlineError: it has not come within `receive_seconds`.
            OverloadedError: too many others are on their way; nothing was read, or what was is thrown away.
        """
        reading: asyncio.Future[T] | None = None
        seconds = self._settings.receive_seconds
        try:
            async with asyncio.timeout(seconds), self._turn(connection):
                reading = asyncio.ensure_future(read())
                done, _ = await asyncio.wait({reading}, timeout=_PROMPT_SECONDS)
                if done:
                    return reading.result()
                if self._slow == 0:
                    raise OverloadedError(
                        "too many requests are slow to arrive; max_receiving = "
                        f"{self._settings.max_receiving}, half of it for those that take longer than a moment"
                    )
                self._slow -= 1
                try:
                    return await reading
                finally:
                    self._slow += 1
        except TimeoutError:
            if reading is None:
                raise OverloadedError(
                    f"other requests have been arriving for receive_seconds = {seconds:g}; max_receiving = "
                    f"{self._settings.max_receiving}"
                ) from None
            raise DeadlineError(f"the request has not arrived within receive_seconds = {seconds:g}") from None
        finally:
            if reading is not None and not reading.done():
                reading.cancel()

    @contextlib.asynccontextmanager
    async def _turn(self, connection: str) -> AsyncIterator[None]:
        """One of the places of the connection, then one of all."""
        own, users = self._connections.get(connection, (asyncio.Semaphore(_OF_ONE_CONNECTION), 0))
        self._connections[connection] = own, users + 1
        try:
            async with own, self._all:
                yield
        finally:
            _, users = self._connections.pop(connection)
            if users > 1:
                self._connections[connection] = own, users - 1
