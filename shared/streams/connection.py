"""The one way to a Redis client: deadlines on every command, outages ridden out, a full server waited for."""

import asyncio
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import InvalidInputError, NotFoundError, PreconditionError, RouterShiftError, UnavailableError
from shared.redis_url import Sentinels, sentinels
from shared.settings import RedisSettings
from shared.streams import metrics
from shared.streams.durability import Durable, LaggingError
from shared.streams.releases import Release, of_info

log = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 1.0
_FULL_WAIT_SECONDS = 0.5
_MOST_CONNECTIONS = 1024  # opened as they are needed: one for each command under way

# Redis 6.2 wraps an error inside a script into one of the script, so that the class is lost and only words remain.
_FULL = re.compile(r"\b(OOM|MISCONF)\b")
_NO_DATABASE = "DB index is out of range"  # of a connection error too: redis-py selects the database as it connects
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
        began, tries = time.monotonic(), 0
        while True:
            try:
                answer = await attempt()
            except (RedisError, OSError) as error:
                trouble = _trouble(error)
                if trouble is None:
                    raise _typed(error, name) from None
                if trouble is _Trouble.FULL and not wait_for_memory:
                    raise OutOfMemoryError(str(error)) from None
                await self._wait(trouble, error, tries, time.monotonic() - began)
                tries += 1
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
            # The other idle connections are as dead, and would cost a try each.
            await self.connection_pool.disconnect(inuse_connections=False)
        if trouble is _Trouble.LAGGING and seconds > self.outage_seconds:
            raise UnavailableError(
                f"{error} for {seconds:.0f} s; check the server, its disk and its replicas"
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


class _PasswordFile(CredentialProvider):
    """The user and the password, as the file is when a connection is opened: a new one serves without a restart."""

    def __init__(self, username: str | None, file: Path) -> None:
        self._username = username
        self._file = file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._file.read_text(encoding="utf-8").strip()
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _secrets(settings: RedisSettings) -> dict[str, Any]:
    """User, password and certificates of a connection, beside its URL. Raises NotFoundError where a file is missing."""
    named = (
        settings.password_file,
        settings.sentinel_password_file,
        settings.authority,
        settings.certificate,
        settings.key,
    )
    for file in named:
        if file is not None and not os.access(file, os.R_OK):
            raise NotFoundError(f"{file} cannot be read; check the table [redis]")
    options: dict[str, Any] = {}
    if settings.password_file:
        options["credential_provider"] = _PasswordFile(settings.username, settings.password_file)
    if settings.authority:
        options["ssl_ca_certs"] = str(settings.authority)
    if settings.certificate:
        options |= {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.key)}
    return options


def _client(settings: RedisSettings) -> Client:
    """Raises InvalidInputError for a URL that redis-py refuses: its own message might repeat a secret."""
    url = settings.url.get_secret_value()
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_timeout": settings.timeout_seconds,
        "socket_connect_timeout": settings.connect_seconds,
        "max_connections": _MOST_CONNECTIONS,
        "retry": Retry(NoBackoff(), 0),
        **_secrets(settings),
    }
    if asked := sentinels(url):
        return _of_sentinels(asked, settings, options)
    try:
        client: Client = Client.from_url(url, **options)  # type: ignore[assignment]  # it is typed as the base class
    except (ValueError, TypeError):
        raise InvalidInputError("redis.url, or REDIS_URL, has an option after its ? with a wrong value") from None
    return client


def _of_sentinels(asked: Sentinels, settings: RedisSettings, options: dict[str, Any]) -> Client:
    """A client of the primary that Sentinels name, whenever a connection is opened."""
    tls = {"ssl": True} if asked.tls else {}
    own = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    if settings.sentinel_password_file:
        own["credential_provider"] = _PasswordFile(settings.sentinel_username, settings.sentinel_password_file)
    if asked.password and "credential_provider" not in options:
        options |= {"username": asked.username, "password": asked.password}
    manager = Sentinel(asked.addresses, sentinel_kwargs=own | tls, db=asked.database, **options, **tls)
    client: Client = manager.master_for(asked.name, redis_class=Client)
    client.sentinels = manager
    return client


async def connect(settings: RedisSettings) -> Client:
    """A client that has heard from its server.

    Raises:
        UnavailableError: no answer. The URL is not repeated: it may hold a secret.
        InvalidInputError: a URL with an unknown option.
        PreconditionError: a wrong user or password, or a database that is not there.
        NotFoundError: a file with a password or a certificate is missing.
    """
    client = _client(settings)
    client.outage_seconds = settings.connect_seconds
    try:
        await client.echo("routershift")  # PING is refused, as a write is, by a server whose disk is full
    except (RouterShiftError, ValueError) as error:
        await client.aclose()
        if _NO_DATABASE in str(error):
            raise PreconditionError(
                "redis.url names a database that this Redis does not have; take one below its `databases`, by default "
                "0 to 15"
            ) from None
        if isinstance(error, PreconditionError):
            raise PreconditionError(
                "redis.url: this Redis refuses us; check the user and the password: those of the URL, or "
                "redis.username and redis.password_file"
            ) from None
        if "url" in settings.model_fields_set:
            hint = "start it or set REDIS_URL" + (", or check redis.authority" if settings.authority else "")
        else:
            hint = (
                "none is named, and 127.0.0.1:6379 is the default: start one with `redis-server`, or set REDIS_URL; "
                "`routershift up` and `run` start one themselves"
            )
        raise UnavailableError(f"redis.url: no Redis answers there ({type(error).__name__}); {hint}") from None
    except TypeError:  # redis-py hands what it does not know on to its connections
        raise InvalidInputError("redis.url, or REDIS_URL, has an option after its ? that redis-py has not") from None
    if settings.durability != "none":
        try:
            client.durable = await _durable(client, settings)
        except RouterShiftError:
            await client.aclose()
            raise
    client.outage_seconds = settings.outage_seconds
    client.heard = True
    return client


async def _durable(client: Client, settings: RedisSettings) -> Durable:
    """What is asked of this server. Raises PreconditionError where it cannot keep what is asked."""
    release = await server_release(client)
    durable = Durable.of(settings, release)
    try:
        for command in durable.commands:  # without a write before it: answered at once
            await client.execute_command(*command)
    except PreconditionError as error:
        raise PreconditionError(
            f"redis.durability is {settings.durability}, which {release} refuses: {error}; set `appendonly yes`, and "
            "let the user WAIT and WAITAOF"
        ) from None
    return durable


async def together(
    redis: Redis, *commands: Sequence[Any], transaction: bool, wait_for_memory: bool = True
) -> list[Any]:
    """The answers of commands that are sent at once; see `Client.execute_together`."""
    if not isinstance(redis, Client):
        raise TypeError(f"{type(redis).__name__} is no client of `connect`")
    return await redis.execute_together(commands, transaction, wait_for_memory)


async def server_release(redis: Redis) -> Release:
    """Which server it is; as text `Redis 7.0.15` or `Valkey 9.1.0`."""
    return of_info(await redis.info("server"))


def losses(redis: Redis) -> int:
    """Commands of this client, so far, whose answer did not come."""
    return redis.lost if isinstance(redis, Client) else 0


def _trouble(error: Exception) -> _Trouble | None:
    """What to wait for; None where waiting does not help."""
    if isinstance(error, LaggingError):
        return _Trouble.LAGGING
    if isinstance(error, (AuthenticationError, AuthorizationError)) or _NO_DATABASE in str(error):
        return None
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and _FULL.search(str(error))):
        return _Trouble.FULL
    if isinstance(error, (ReadOnlyError, ClusterDownError, TryAgainError)):
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
