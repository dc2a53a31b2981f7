"""Runs whose arrays lie in a payload store."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.settings import StreamSettings
from shared.streams.run import Run
from tests.support.payloads import bulk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "payloads"


@pytest.fixture
async def by_reference(redis: Redis, run: Run, stream_settings: StreamSettings, folder: Path) -> Run:
    """The run as a service that writes and reads arrays has it."""
    made = Run(redis, run.keys.run, stream_settings, bulk(folder))
    await made.open()
    return made
