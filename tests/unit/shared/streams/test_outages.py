"""The data path while Redis is away: lost answers, restarts, failover, no memory. What is repeated happens once."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import PreconditionError, UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams import metrics
from shared.streams.audit import audit
from shared.streams.connection import Client, connect
from shared.streams.consumer import Consumer, End, Entry
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import Run
from tests.support.redis_link import Link, link, provide
from tests.support.redis_server import Server

GROUP = 4


def prompt(index: int) -> pb.Prompt:
    return pb.Prompt(prompt_id=f"{index:08d}", text="1,2,3:6=", sampling=pb.SamplingParams(n=GROUP))


@pytest.fixture
async def cut(redis_url: str) -> AsyncIterator[tuple[Client, Link]]:
    """A client whose way to Redis can lose answers."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        async with link(redis_url, Path(folder)) as (url, between):
            client = await connect(RedisSettings(url=url))
            yield client, between
            await client.aclose()


async def test_a_lost_answer_is_asked_for_again_and_nothing_happens_twice(
    redis: Redis, run: Run, stream_settings: StreamSettings, cut: tuple[Client, Link]
) -> None:
    client, between = cut
    call = await provide(client)  # so that it is not the answer that there is no such script which is lost
    far = Run(client, run.keys.run, stream_settings)
    between.lose_answer_to(call)
    assert await far.admit(0, prompt(0), 10) == "done"
    assert await far.admit(1, prompt(1), 10) == "ok"
    assert await far.admit(2, prompt(2), 10) == "ok"
    reader = far.consumer(Stream.PROMPTS)
    first, second, third = await reader.read(3)
    group = pb.TrajectoryGroup(prompt=prompt(0))
    between.lose_answer_to(call)
    assert await reader.hand_over(first, Stream.ROLLOUTS, group)
    between.lose_answer_to(call)
    assert await reader.end(second, End.dropped("test"))
    between.lose_answer_to(call)
    assert await reader.bury(third, "test", "for the test")
    between.lose_answer_to(call)
    await far.announce(pb.WeightsManifest(version=1))
    assert between.lost == client.lost == 5
    assert await redis.xlen(run.keys.weights) == 1
    assert (await run.backlog())[Stream.ROLLOUTS].entries == await run.dead_letters() == 1
    ledger = await run.ledger()
    assert (ledger.prompted, ledger.dropped, ledger.dead) == (3 * GROUP, {"test": GROUP}, {"test": GROUP})
    assert not (await audit(redis, run, None)).problems
    assert not await reader.end(first, End.dropped("test"))  # another settlement of it is another thing


async def test_entries_of_a_lost_answer_are_read_at_once_and_held_ones_not_again(
    run: Run, stream_settings: StreamSettings, cut: tuple[Client, Link]
) -> None:
    client, between = cut
    settings = stream_settings.model_copy(update={"idle_seconds": 60.0})
    far = Run(client, run.keys.run, settings)
    for i in range(4):
        await far.admit(i, prompt(i), 10)
    reader = far.consumer(Stream.PROMPTS)
    (held,) = await reader.read(1)
    between.lose_answer_to(b"XREADGROUP")
    reads = [await reader.read(count) for count in (2, 1, 1)]  # the lost answer held two
    assert between.lost == 1
    assert all(len(read) <= count for read, count in zip(reads, (2, 1, 1), strict=True)), (
        "never more than was asked for"
    )
    later = [entry for read in reads for entry in read]
    assert {entry.group for entry in later} == {"00000001/0", "00000002/0", "00000003/0"}
    assert held.id not in {entry.id for entry in later}
    (pending,) = await client.xpending_range(run.keys(Stream.PROMPTS), "generation", held.id, held.id, 1)
    assert pending["times_delivered"] == 1


async def test_a_full_redis_is_waited_for_and_those_who_empty_it_go_on(redis: Redis, run: Run) -> None:
    for i in range(2):
        await run.admit(i, prompt(i), 10)
    reader = run.consumer(Stream.PROMPTS)
    first, second = await reader.read(2)
    before = metrics.RETRIES.labels("full")._value.get()
    large = pb.TrajectoryGroup(prompt=pb.Prompt(prompt_id="00000000", text="x" * 40_000))
    await redis.config_set("maxmemory", 1)
    try:
        admitting = asyncio.create_task(run.admit(2, prompt(2), 10))
        handing = asyncio.create_task(reader.hand_over(first, Stream.ROLLOUTS, large))
        reporting = asyncio.create_task(run.report_progress(Progress(step=1)))
        assert await reader.end(second, End.dropped("test"))
        done, waiting = await asyncio.wait({admitting, handing, reporting}, timeout=0.3)
        assert not done
    finally:
        await redis.config_set("maxmemory", 0)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert metrics.RETRIES.labels("full")._value.get() >= before + 3
    assert (await run.backlog())[Stream.ROLLOUTS].entries == 1
    assert not (await audit(redis, run, None)).problems


async def test_a_group_moves_on_in_a_full_redis_where_it_takes_no_more_room(redis: Redis, run: Run) -> None:
    await run.admit(0, prompt(0), 10)
    (entry,) = await run.consumer(Stream.PROMPTS).read(1)
    message = pb.TrajectoryGroup(prompt=pb.Prompt(prompt_id="00000000", text="x" * 40_000))
    await run.consumer(Stream.PROMPTS).hand_over(entry, Stream.ROLLOUTS, message)
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    message.scored_at.GetCurrentTime()
    await redis.config_set("maxmemory", 1)
    try:
        assert await asyncio.wait_for(reader.hand_over(entry, Stream.SCORED, message), 5)
    finally:
        await redis.config_set("maxmemory", 0)
    assert not (await audit(redis, run, None)).problems


async def test_a_server_that_is_no_longer_the_primary_is_tried_again(redis: Redis, run: Run) -> None:
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await redis.replicaof("127.0.0.1", "1")  # nothing answers there, so the data stays
    try:
        ending = asyncio.create_task(reader.end(entry, End.dropped("test")))
        reading = asyncio.create_task(reader.read(1))
        done, _ = await asyncio.wait({ending, reading}, timeout=0.3)
        assert not done
    finally:
        await redis.replicaof("NO", "ONE")
    assert await asyncio.wait_for(ending, 10)
    assert await asyncio.wait_for(reading, 10) == []
    assert (await run.ledger()).dropped == {"test": GROUP}


async def test_settling_and_beating_survive_the_loss_of_the_consumer_group(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    for i in range(2):
        await run.admit(i, prompt(i), 10)
    reader = run.consumer(Stream.PROMPTS)
    first, second = await reader.read(2)
    await redis.xgroup_destroy(run.keys(Stream.PROMPTS), "generation")
    assert await reader.hand_over(first, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=prompt(0)))
    beating = asyncio.create_task(reader.beat())
    while not await redis.xinfo_groups(run.keys(Stream.PROMPTS)):  # noqa: ASYNC110  # another task's doing
        await asyncio.sleep(0.02)
    beating.cancel()
    assert await reader.read(2) == []  # delivered anew, but held
    other = Consumer(redis, run.keys, Stream.PROMPTS, stream_settings.model_copy(update={"consumer": "other"}))
    assert await reader.end(second, End.dropped("test"))
    assert not await other.end(second, End.dropped("test"))
    assert (await run.ledger()).dropped == {"test": GROUP}
    assert not (await audit(redis, run, None)).problems


@pytest.fixture
def server(redis_binary: str) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), Path(folder) / "r.sock", binary=redis_binary) as server,
    ):
        yield server


async def test_a_redis_that_is_killed_and_comes_back_loses_nothing_it_acknowledged(
    server: Server, stream_settings: StreamSettings
) -> None:
    redis = await connect(RedisSettings(url=server.url))
    run = Run(redis, "restarted", stream_settings)
    await run.open()
    stop, ended = asyncio.Event(), list[str]()
    reader = run.consumer(Stream.PROMPTS)

    async def handle(entry: Entry) -> None:
        await reader.end(entry, End.trained(1))
        ended.append(entry.group)
        if len(ended) == 40:
            stop.set()

    async def feed() -> None:
        for i in range(40):
            await run.admit(i, prompt(i), 100)
            if i in (10, 25):
                server.kill()
                asyncio.get_running_loop().call_later(0.5, server.start)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(feed())
        tasks.create_task(asyncio.wait_for(reader.each(handle, lambda: 4 - reader.held, stop), 60))
    assert sorted(set(ended)) == sorted(ended) == [f"{i:08d}/0" for i in range(40)]
    found = await audit(redis, run, None)
    assert (found.ledger.trained, found.problems) == (40 * GROUP, {})
    await redis.aclose()


@pytest.fixture
def diskless(redis_binary: str) -> Iterator[Server]:
    """A server whose folder is gone, so that no snapshot can be written there."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        with Server(data, Path(folder) / "r.sock", appendonly=False, binary=redis_binary) as server:
            data.rmdir()
            yield server


async def test_a_redis_that_cannot_write_its_disk_is_waited_for(
    diskless: Server, stream_settings: StreamSettings
) -> None:
    redis = await connect(RedisSettings(url=diskless.url))
    run = Run(redis, "unwritten", stream_settings)
    await run.open()
    await redis.config_set("save", "3600 1")
    await redis.bgsave()
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0.02)
    late = await connect(RedisSettings(url=diskless.url))  # it answers, though it refuses PING
    admitting = asyncio.create_task(Run(late, "unwritten", stream_settings).admit(0, prompt(0), 10))
    done, _ = await asyncio.wait({admitting}, timeout=0.3)
    assert not done
    await redis.config_set("save", "")
    assert await asyncio.wait_for(admitting, 10) == "ok"
    await redis.aclose()
    await late.aclose()


async def test_a_redis_that_stays_away_is_a_typed_error(server: Server, stream_settings: StreamSettings) -> None:
    redis = await connect(RedisSettings(url=server.url, outage_seconds=0.3))
    run = Run(redis, "away", stream_settings)
    await run.open()
    server.kill()
    calls: list[Any] = [run.ledger(), run.consumer(Stream.PROMPTS).read(1), run.report_progress(Progress(step=1))]
    for call in calls:
        with pytest.raises(UnavailableError, match=r"redis\.outage_seconds"):
            await call
    await redis.aclose()


@pytest.mark.parametrize(
    ("memory", "policy", "said"),
    [(1 << 30, "allkeys-lru", "set it to noeviction"), (300 << 20, "noeviction", "streams.max_bytes to 78643200")],
)
async def test_a_redis_that_cannot_hold_the_streams_is_refused_at_the_start(
    redis: Redis, run: Run, memory: int, policy: str, said: str
) -> None:
    await redis.config_set("maxmemory", memory)
    await redis.config_set("maxmemory-policy", policy)
    try:
        with pytest.raises(PreconditionError, match=said):
            await run.open()
    finally:
        await redis.config_set("maxmemory", 0)
        await redis.config_set("maxmemory-policy", "noeviction")
    await run.open()


async def test_what_redis_refuses_is_a_typed_error(redis: Redis, run: Run) -> None:
    await redis.set(run.keys.ledger, "not a hash")
    with pytest.raises(PreconditionError, match=r"Redis refuses (EVALSHA|FCALL_RO).*WRONGTYPE"):
        await run.ledger()
