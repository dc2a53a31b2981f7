"""The one way to a Redis client: deadlines on every command, reconnection with backoff and jitter."""

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import UnavailableError
from shared.settings import RedisSettings

# Every command is idempotent (hand-overs are conditional scripts), so a lost answer may be asked for again.
# 8 tries with waits that double from 50 ms to 5 s ride out a restart of about 15 s.
_RETRIES = 8


class _Client(Redis):
    """redis-py 8.1 loses a cancellation that arrives while it looks at an idle connection: the command completes and
    its task lives on, for ever if it loops. Here the task learns of it when the command is done."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # it has no types
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        return answer


async def connect(settings: RedisSettings) -> Redis:
    """A client that has heard from its server.

    Raises:
        UnavailableError: no answer, or the wrong password. The URL is not repeated: it may hold a secret.
    """
    client = _Client.from_url(
        settings.url.get_secret_value(),
        protocol=2,
        socket_timeout=settings.timeout_seconds,
        socket_connect_timeout=settings.connect_seconds,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=5.0), _RETRIES),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    once = client.get_retry()
    try:
        client.set_retry(Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 2))
        await client.ping()
    except (RedisError, OSError, ValueError) as error:
        await client.aclose()
        hint = "check the password" if isinstance(error, AuthenticationError) else "start it or set REDIS_URL"
        raise UnavailableError(f"redis.url: no Redis answers there ({type(error).__name__}); {hint}") from None
    if once is not None:
        client.set_retry(once)
    return client
