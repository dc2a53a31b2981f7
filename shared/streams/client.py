"""The client of a Redis: deadlines on every command, outages ridden out, a full server and a lagging one waited for."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import PreconditionError, UnavailableError
from shared.streams import metrics
from shared.streams.cluster import Nodes
from shared.streams.durability import Durable, LaggingError

log = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 1.0
_FULL_WAIT_SECONDS = 0.5
_MOST_MOVES = 4  # from one node of a Cluster to the next, without a wait for them to agree

# Redis 6.2 wraps an error inside a script into one of the script, so that the class is lost and only words remain.
_FULL = re.compile(r"\b(OOM|MISCONF)\b")
NO_DATABASE = "DB index is out of range"  # of a connection error too: redis-py selects the database as it connects
_FAILOVER = re.compile(r"\b(READONLY|LOADING|MASTERDOWN|TRYAGAIN|CLUSTERDOWN|NOREPLICAS|UNBLOCKED|BUSY)\b")


class _Trouble(StrEnum):
    """Why a command is sent again: the label of the metric."""

    LOST = "lost"
    FAILOVER = "failover"
    FULL = "full"
    LAGGING = "lagging"


class Client(Redis):
    """Sends a command again for as long as that may help.

    Every command of the data path may be repeated: a state change is a script that knows what it has done. What has no
    answer, or meets a server that is loading or no longer the primary, is sent again for `outage_seconds`; what meets a
    server without memory or disk waits until there is some, because dropping it would lose data.

    redis-py 8.1 loses a cancellation that arrives while it looks at an idle connection: the command completes and its
    task lives on, for ever if it loops. Here the task learns of it when the command is done.
    """

    outage_seconds = 60.0
    heard = False  # from the server, ever
    has_functions = True  # as far as is known; Redis 6.2 has none
    durable: Durable | None = None  # what is asked of a write before it is acknowledged
    sentinels: Sentinel | None = None  # whom it asks for the primary
    nodes: Nodes | None = None  # of a Cluster: which of them it asks
    lost = 0  # commands whose answer did not come: what they did is known to the server alone
    _troubled: dict[_Trouble, float] | None = None  # since when; said once each

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Raises:
        UnavailableError: no answer within `outage_seconds`.
        PreconditionError: the server refuses the command, as for a wrong password.
        """
        command = super().execute_command
        return await self._persist(str(args[0]), lambda: command(*args, **options))  # type: ignore[no-untyped-call]  # it has no types

    async def execute_together(
        self, commands: Sequence[Sequence[Any]], transaction: bool, wait_for_memory: bool
    ) -> list[Any]:
        """The answers of commands that are sent at once, in one MULTI if `transaction`.

        Raises:
            UnavailableError, PreconditionError: as for one command.
            OutOfMemoryError: the server is full, and `wait_for_memory` is False.
        """
        attempt = self._attempt_of(commands, transaction)
        answers: list[Any] = await self._persist(str(commands[-1][0]), attempt, wait_for_memory)
        return answers

    async def execute_durably(
        self, commands: Sequence[Sequence[Any]], mark: Sequence[Any], wait_for_memory: bool = True
    ) -> list[Any]:
        """As `execute_together` without MULTI, once what they wrote is where `redis.durability` says.

        All are sent again where it is not: another connection may have come to another primary, which lacks the write.

        Args:
            mark: a command that writes whatever is there already: see mark.lua.
        """
        asked = self.durable
        if asked is None:
            return await self.execute_together(commands, transaction=False, wait_for_memory=wait_for_memory)
        awaited = (*commands, mark, *asked.commands)
        attempt = self._attempt_of(awaited, transaction=False)

        async def confirmed() -> Any:
            answers = await attempt()
            asked.check(answers[len(commands) + 1 :])
            return answers[: len(commands)]

        answers: list[Any] = await self._persist(str(commands[-1][0]), confirmed, wait_for_memory)
        return answers

    def _attempt_of(self, commands: Sequence[Sequence[Any]], transaction: bool) -> Callable[[], Awaitable[Any]]:
        async def attempt() -> Any:
            async with self.pipeline(transaction=transaction) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                answers = await pipe.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

        return attempt

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Closes the connections, those to Sentinels too."""
        await super().aclose(close_connection_pool)
        if self.sentinels is not None:
            await self.sentinels.aclose()

    async def _persist(self, name: str, attempt: Callable[[], Awaitable[Any]], wait_for_memory: bool = True) -> Any:
        """What `attempt` gives, as soon as the server serves."""
        began, tries, moves = time.monotonic(), 0, 0
        while True:
            try:
                answer = await attempt()
            except (RedisError, OSError) as error:
                if isinstance(error, MovedError) and self.nodes is not None and moves < _MOST_MOVES:
                    self.nodes.moved(error)
                    await self.connection_pool.disconnect(inuse_connections=False)  # they are to the node before
                    moves += 1
                    continue
                trouble = _trouble(error)
                if trouble is None:
                    raise _typed(error, name) from None
                if trouble is _Trouble.FULL and not wait_for_memory:
                    raise OutOfMemoryError(str(error)) from None
                await self._wait(trouble, error, tries, time.monotonic() - began)
                tries, moves = tries + 1, 0
                continue
            if tries:
                self._well()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
            return answer

    async def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """A server that is no longer the primary is looked up anew."""
        try:
            return await super().parse_response(connection, command_name, **options)
        except ResponseError as error:
            if _trouble(error) is _Trouble.FAILOVER:
                await connection.disconnect(nowait=True)
            raise

    async def _wait(self, trouble: _Trouble, error: Exception, tries: int, seconds: float) -> None:
        metrics.RETRIES.labels(trouble).inc()
        if trouble is _Trouble.LOST:
            self.lost += 1
            if self.nodes is not None:
                self.nodes.lost()
            # The other idle connections are as dead, and would cost a try each.
            await self.connection_pool.disconnect(inuse_connections=False)
        if trouble is _Trouble.LAGGING and seconds > self.outage_seconds:
            raise UnavailableError(
                f"{error} for {seconds:.0f} s; check the server, its disk and its replicas"
            ) from None
        if isinstance(error, MovedError) and self.nodes is None:
            raise PreconditionError(
                "redis.url names one node of a Cluster; write redis+cluster://HOST:PORT,HOST:PORT with several"
            ) from None
        if trouble is not _Trouble.FULL and seconds > self.outage_seconds:
            raise UnavailableError(
                f"redis.url: no answer for {seconds:.0f} s ({type(error).__name__}); check the server, or raise "
                "redis.outage_seconds"
            ) from None
        self._troubled = self._troubled or {}
        if self.heard and trouble not in self._troubled:
            self._troubled[trouble] = time.monotonic()
            if trouble is _Trouble.FULL:
                log.warning("Redis is full; waiting for room: %s", error)
            elif trouble is _Trouble.LAGGING:
                log.warning("%s; trying for %.0f s", error, self.outage_seconds)
            else:
                said = str(error).partition(" : ")[0]  # of a Sentinel redis-py goes on with all of its options
                log.warning("Redis does not serve; trying for %.0f s: %s", self.outage_seconds, said)
        if trouble is _Trouble.FULL:
            await asyncio.sleep(_FULL_WAIT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  # jitter
        else:
            longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(tries, 10))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311  # jitter

    def _well(self) -> None:
        for trouble, since in (self._troubled or {}).items():
            what = {_Trouble.FULL: "takes writes", _Trouble.LAGGING: "confirms writes"}.get(trouble, "serves")
            log.warning("Redis %s again after %.1f s", what, time.monotonic() - since)
        self._troubled = None


def _trouble(error: Exception) -> _Trouble | None:
    """What to wait for; None where waiting does not help."""
    if isinstance(error, LaggingError):
        return _Trouble.LAGGING
    if isinstance(error, (AuthenticationError, AuthorizationError)) or NO_DATABASE in str(error):
        return None
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and _FULL.search(str(error))):
        return _Trouble.FULL
    if isinstance(error, (ReadOnlyError, AskError, ClusterDownError, TryAgainError)):
        return _Trouble.FAILOVER
    if isinstance(error, ResponseError) and _FAILOVER.search(str(error)):
        return _Trouble.FAILOVER
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError)):
        return _Trouble.LOST
    return None


def _typed(error: Exception, command: str) -> Exception:
    """The error itself where the caller expects it, else one that a user can read."""
    if isinstance(error, NoScriptError) or str(error).startswith(("BUSYGROUP", "NOGROUP", "Function not found")):
        return error
    if (command == "FUNCTION LOAD" and "already exists" in str(error)) or (
        command.startswith("FCALL") and "unknown command" in str(error)
    ):
        return error
    if "FENCED" in str(error):  # see fence.lua
        return PreconditionError(f"{str(error).partition('FENCED ')[2]}; this one ends")
    return PreconditionError(f"Redis refuses {command}: {error}; check its user's rights, and that it is 6.2 or later")
