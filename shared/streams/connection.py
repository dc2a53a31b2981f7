"""The one way to a Redis client: its address, its secrets, and what its server has to be."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from shared.errors import InvalidInputError, NotFoundError, PreconditionError, RouterShiftError, UnavailableError
from shared.redis_url import TLS, Several, cluster, sentinels
from shared.settings import RedisSettings
from shared.streams.client import NO_DATABASE, Client
from shared.streams.cluster import Address, NodeConnection, Nodes, TlsNodeConnection
from shared.streams.durability import Durable
from shared.streams.releases import Release, of_info

__all__ = ["Client", "at", "connect", "losses", "primaries", "server_release", "together"]

_MOST_CONNECTIONS = 1024  # opened as they are needed: one for each command under way


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
    if asked := cluster(url):
        return _of_cluster(asked, options)
    try:
        client: Client = Client.from_url(url, **options)  # type: ignore[assignment]  # it is typed as the base class
    except (ValueError, TypeError):
        raise InvalidInputError("redis.url, or REDIS_URL, has an option after its ? with a wrong value") from None
    return client


def _of_sentinels(asked: Several, settings: RedisSettings, options: dict[str, Any]) -> Client:
    """A client of the primary that Sentinels name, whenever a connection is opened."""
    tls = {"ssl": True} if asked.tls else {}
    own = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_", "retry"))}
    if settings.sentinel_password_file:
        own["credential_provider"] = _PasswordFile(settings.sentinel_username, settings.sentinel_password_file)
    options |= _of_url(asked, options)
    manager = Sentinel(  # type: ignore[no-untyped-call]  # it has no types
        asked.addresses, sentinel_kwargs=own | tls, db=asked.database, **options, **tls
    )
    client: Client = manager.master_for(asked.name, redis_class=Client)
    client.sentinels = manager
    return client


def _of_cluster(asked: Several, options: dict[str, Any]) -> Client:
    """A client of the node that has the run's keys."""
    nodes = Nodes(asked.addresses)
    kind = TlsNodeConnection if asked.tls else NodeConnection
    pool = ConnectionPool(connection_class=kind, nodes=nodes, **options, **_of_url(asked, options))
    client: Client = Client.from_pool(pool)  # type: ignore[assignment]  # it is typed as the base class
    client.nodes = nodes
    return client


def _of_url(asked: Several, options: dict[str, Any]) -> dict[str, Any]:
    """User and password of the URL, where no file has them."""
    if asked.password and "credential_provider" not in options:
        return {"username": asked.username, "password": asked.password}
    return {}


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
        if NO_DATABASE in str(error):
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


async def primaries(redis: Redis) -> list[Address]:
    """Those of a Cluster; none of another Redis."""
    if not isinstance(redis, Client) or redis.nodes is None:
        return []
    slots: Any = await redis.execute_command("CLUSTER", "SLOTS")  # the one form that all releases know
    named = redis.nodes.address[0]
    return list(dict.fromkeys(((owner[0] or b"").decode() or named, int(owner[1])) for _, _, owner, *_ in slots))


def at(settings: RedisSettings, node: Address) -> Client:
    """A client of one node of a Cluster, with the same secrets. It has not heard from it."""
    host, port = node
    parts = urlsplit(settings.url.get_secret_value())
    user = parts.netloc.rpartition("@")[:2]
    scheme = "rediss+cluster" if parts.scheme in TLS else "redis+cluster"
    host = f"[{host}]" if ":" in host else host
    return _client(settings.model_copy(update={"url": SecretStr(f"{scheme}://{''.join(user)}{host}:{port}")}))


def losses(redis: Redis) -> int:
    """Commands of this client, so far, whose answer did not come."""
    return redis.lost if isinstance(redis, Client) else 0
