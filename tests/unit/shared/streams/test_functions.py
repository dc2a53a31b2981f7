"""The library of Redis Functions: where it is kept, versions beside each other, and servers that have none."""

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from routershift.v1 import trajectory_pb2 as pb
from services.cli.local.redis import release_of
from shared.settings import RedisSettings, StreamSettings
from shared.streams import scripts
from shared.streams.connection import Client, connect
from shared.streams.functions import FLAGS, Library, library, load
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.redis_server import Server
from tests.support.runs import prompt


@pytest.fixture
def server(redis_binary: str) -> Iterator[Server]:
    if not release_of(redis_binary).has_functions:
        pytest.skip("this server has no functions")
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), Path(folder) / "r.sock", binary=redis_binary) as server,
    ):
        yield server


async def libraries(redis: Client) -> set[str]:
    found = await redis.function_list(library="routershift_*")
    return {dict(zip(each[::2], each[1::2], strict=True))[b"library_name"].decode() for each in found}


async def test_versions_are_beside_each_other_and_stay_with_the_data(
    server: Server, monkeypatch: pytest.MonkeyPatch, stream_settings: StreamSettings
) -> None:
    redis = await connect(RedisSettings(url=server.url))
    now = Run(redis, "versions", stream_settings)
    await now.open()
    assert await now.admit(0, prompt(0), 10) == "ok"
    name = f"{library().name[:-1]}x"
    earlier_library = Library(name, library().text.replace(library().name, name))
    with monkeypatch.context() as patched:
        patched.setattr("shared.streams.functions.library", lambda: earlier_library)
        patched.setattr(scripts, "library", lambda: earlier_library)
        earlier = Run(redis, "versions", stream_settings)
        assert await earlier.admit(1, prompt(1), 10) == "ok"
    await redis.flushall()  # of keys
    server.kill()
    server.start()
    assert await libraries(redis) == {library().name, name}
    assert not await load(redis), "it is there"
    for run in (now, earlier):
        assert await run.tickets_held() == 0
        await run.return_tickets(["nobody/0"])
    await redis.aclose()


async def test_a_server_that_lost_them_gets_them_again_from_whoever_may(
    server: Server, stream_settings: StreamSettings
) -> None:
    redis = await connect(RedisSettings(url=server.url))
    run = Run(redis, "lost", stream_settings)
    await run.open()
    assert await run.admit(0, prompt(0), 10) == "ok"
    await redis.function_flush()
    (entry,) = await run.consumer(Stream.PROMPTS).read(1)
    assert await run.consumer(Stream.PROMPTS).hand_over(entry, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=prompt(0)))
    assert await libraries(redis) == {library().name}
    await redis.aclose()


async def test_what_shrinks_or_is_small_is_done_in_a_full_redis(
    server: Server, stream_settings: StreamSettings
) -> None:
    redis = await connect(RedisSettings(url=server.url))
    run = Run(redis, "full", stream_settings)
    await run.open()
    await run.lease.acquire("learner")
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await redis.config_set("maxmemory", 1)
    async with asyncio.timeout(10):
        await run.lease.confirm()
        await reader.vouch(entry)
        await run.return_tickets([entry.group])
        await run.register_replica("one", workers=1, version=0)
        assert list(await run.replicas()) == ["one"]
        assert (await run.backlog())[Stream.PROMPTS].entries == 1
        assert await run.newest_weights() is None
    await redis.aclose()


def test_each_script_is_a_function() -> None:
    files = {file.stem for file in Path(scripts.__file__).with_name("lua").iterdir()}
    assert files - {"fence"} == FLAGS.keys() - {"settle_shrinking"}


async def test_a_server_without_functions_is_told_once_what_it_does_not_guard(
    redis_binary: str, redis: Client, stream_settings: StreamSettings, caplog: pytest.LogCaptureFixture
) -> None:
    if release_of(redis_binary).has_functions:
        pytest.skip("this server has functions")
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            run = Run(redis, name, stream_settings)
            await run.open()
            assert await run.admit(0, prompt(0), 10) == "ok"
    (said,) = [record.getMessage() for record in caplog.records if "functions" in record.getMessage()]
    assert said.startswith(f"{release_of(redis_binary)} has no functions, and no selectors for its users")
    assert "may load and run any script, also one that never ends" in said
