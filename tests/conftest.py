"""Fixtures that every suite shares: a real Redis, its own key space for each test."""

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.cli.local_redis import find_server
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.run import Run

_names = count()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own on a Unix socket, for the whole session."""
    socket = tmp_path_factory.mktemp("redis") / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(
        [find_server(), *arguments, "--dir", str(socket.parent)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"unix://{socket}?db=0"
    with SyncRedis.from_url(url) as client:
        for _ in range(200):
            try:
                client.ping()
                break
            except RedisConnectionError:
                time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(10)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = await connect(RedisSettings(url=redis_url))
    yield client
    await client.aclose()


@pytest.fixture
def stream_settings() -> StreamSettings:
    return StreamSettings(block_seconds=0.05, idle_seconds=0.2, max_deliveries=3, consumer="one")


@pytest.fixture
async def run(redis: Redis, stream_settings: StreamSettings) -> Run:
    """A run of its own name, so that tests do not meet."""
    run = Run(redis, f"test-{next(_names)}", stream_settings)
    await run.open()
    return run


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]
