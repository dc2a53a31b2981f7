"""Fixtures that every suite shares: a real Redis, its own key space for each test."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from services.cli.local.redis import find_server
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.run import Run
from tests.support.redis_server import Server, binaries, version

# Read when torch is imported, here and in what tests start. On a busy machine threads that wait for others would
# otherwise spin, for 20 times the CPU time of what they compute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_names = count()

# A busy machine is no fault of what is tested: no property has a deadline, and drawing may be slow.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_report_header() -> str:
    """Which server the tests use; those of the data path use all that are there."""
    return f"redis-server: {version(find_server())}; data path: {', '.join(binaries())}"


@pytest.fixture(scope="module", autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """A process has one default process group: one that a file leaves open is an error in a later file, or not."""
    yield
    distributed = sys.modules.get("torch.distributed")
    assert distributed is None or not distributed.is_initialized(), "close the Trainer or Ranks of this file"


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """The server that tests start."""
    return find_server()


@pytest.fixture(scope="session")
def redis_url(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own on a Unix socket, for the whole session."""
    folder = tmp_path_factory.mktemp("redis")
    with Server(folder, folder / "redis.sock", appendonly=False, binary=redis_binary) as server:
        yield server.url


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
