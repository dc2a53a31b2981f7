"""`redis.durability` on each server that is here: what confirms a write, and which servers cannot be asked."""

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.cli.commands.functions import functions
from services.cli.local.redis import embedded, release_of
from shared.errors import PreconditionError, UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.redis_server import Server, binaries
from tests.support.runs import GROUP, end, move, prompt

VALKEY = embedded() or ""
WITHOUT_WAITAOF = {name: path for name, path in binaries().items() if not release_of(path).has_waitaof}


@asynccontextmanager
async def durable_run(server: Server, **settings: object) -> AsyncIterator[Run]:
    values: dict[str, object] = {"url": server.url, "durability": "fsync", "timeout_seconds": 2.0}
    redis = await connect(RedisSettings.model_validate(values | settings))
    try:
        run = Run(redis, "durable", StreamSettings(block_seconds=0.05))
        await run.open()
        yield run
    finally:
        await redis.aclose()


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
async def test_a_write_is_acknowledged_once_it_is_on_disk(tmp_path: Path, appendfsync: str) -> None:
    with Server(tmp_path, tmp_path / "r.sock", binary=VALKEY, appendfsync=appendfsync) as server:
        async with durable_run(server) as run:
            assert await run.admit(0, prompt(0), 10) == "ok"


async def test_a_write_that_is_never_synced_is_never_acknowledged(tmp_path: Path) -> None:
    """So the answer above is that of the disk."""
    with Server(tmp_path, tmp_path / "r.sock", binary=VALKEY, appendfsync="no") as server:
        async with durable_run(server, outage_seconds=2.0) as run:
            with pytest.raises(UnavailableError, match="Redis has not on its disk what it did for"):
                await run.admit(0, prompt(0), 10)


async def test_a_server_without_an_append_only_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with (
        Server(tmp_path, tmp_path / "r.sock", binary=VALKEY, appendonly=False) as server,
        pytest.raises(PreconditionError, match=r"durability is fsync, which Valkey .*; set `appendonly yes`"),
    ):
        async with durable_run(server):
            pass


@pytest.mark.parametrize("name", WITHOUT_WAITAOF)
async def test_a_server_that_cannot_be_asked_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    with (
        Server(tmp_path, tmp_path / "r.sock", binary=WITHOUT_WAITAOF[name]) as server,
        pytest.raises(PreconditionError, match=r"durability is fsync, and Redis .* cannot .*: fsync needs Redis 7\.2"),
    ):
        async with durable_run(server):
            pass


@pytest.fixture
def users(tmp_path: Path, repository: Path) -> list[list[str]]:
    """Name and rights of each user of deploy/redis/users.acl, whose password is its name eight times."""
    template = (repository / "deploy/redis/users.acl").read_text()
    for user in re.findall("^user ([a-z]+)", template, re.MULTILINE):
        (tmp_path / user).write_text(user * 8)
    command = ["sh", str(repository / "deploy/redis/acl.sh"), f"{tmp_path}/"]
    rules = subprocess.run(command, input=template, check=True, text=True, capture_output=True).stdout
    return [line.split()[1:] for line in rules.splitlines()]


async def test_the_users_of_services_may_ask(tmp_path: Path, users: list[list[str]]) -> None:
    """Those of deploy/redis/users.acl as they stand: tests of their rights leave out what Redis 7.0 does not know."""
    with Server(tmp_path, tmp_path / "r.sock", binary=VALKEY) as server:
        async with Redis.from_url(server.url) as admin:
            for user, *rights in users:
                if user != "default":
                    await admin.execute_command("ACL", "SETUSER", user, *rights)  # type: ignore[no-untyped-call]

        def url(user: str) -> str:
            return server.url.replace("unix://", f"unix://{user}:{user * 8}@")

        await functions(RedisSettings.model_validate({"url": url("functions")}))
        async with AsyncExitStack() as stack:
            runs = {
                user: await stack.enter_async_context(durable_run(server, url=url(user)))
                for user in ("curriculum", "generation", "environments", "reward", "learner")
            }
            assert await runs["curriculum"].admit(0, prompt(0), 10) == "ok"
            await move(runs["generation"], Stream.PROMPTS, Stream.ROLLOUTS, 1)
            await move(runs["reward"], Stream.ROLLOUTS, Stream.SCORED, 1)
            assert len(await end(runs["learner"], Stream.SCORED, 1, End.trained(1))) == 1
            assert (await runs["learner"].ledger()).trained == GROUP
