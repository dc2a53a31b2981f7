"""Payloads beside their stream, and who waits, who is gone and who is vouched for."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.cli.local.redis import release_of
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import Client, connect, server_release
from shared.streams.consumer import Consumer, End, Entry
from shared.streams.keys import READERS, Stream
from shared.streams.run import Run
from tests.support.redis_link import Link, link, provide
from tests.support.runs import prompt, scored

LARGE = 100_000


async def blobs(redis: Redis, run: Run) -> list[bytes]:
    found: Any = await redis.keys(run.keys.blob("*"))
    return [key for key in found if await redis.ttl(key) == -1]


@pytest.fixture
async def cut(redis_url: str) -> AsyncIterator[tuple[Client, Link]]:
    """A client whose way to Redis can lose answers."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        async with link(redis_url, Path(folder)) as (url, between):
            client = await connect(RedisSettings(url=url))
            yield client, between
            await client.aclose()


async def test_a_large_payload_lies_in_one_string_from_the_prompt_to_the_end(redis: Redis, run: Run) -> None:
    asked = prompt(0)
    asked.text = "x" * LARGE
    assert await run.admit(0, asked, 10) == "ok"
    assert len(await blobs(redis, run)) == 1
    for source, destination in ((Stream.PROMPTS, Stream.ROLLOUTS), (Stream.ROLLOUTS, Stream.SCORED)):
        reader = run.consumer(source)
        (entry,) = await reader.read(1)
        assert len(entry.payload) == entry.size > LARGE
        assert await reader.hand_over(entry, destination, scored(0, LARGE))
        (blob,) = await blobs(redis, run)
        assert await redis.get(blob) == scored(0, LARGE).SerializeToString()
        assert (await audit(redis, run, None)).problems == {}
    reader = run.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    await reader.bury(entry, "bad", "for the test")
    (dead_letter,) = await run.dead.ids()
    assert (await run.dead.get(dead_letter)).payload == entry.payload
    await run.dead.replay(dead_letter)
    (entry,) = await reader.read(1)
    await reader.end(entry.ref, End.dropped("test"))
    assert await redis.keys(run.keys.blob("*")) == []
    assert (await audit(redis, run, None)).problems == {}


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_payload_with_more_behind_it_goes_on_and_what_lies_beside_the_stream_is_not_sent_again(
    redis: Redis, run: Run, cut: tuple[Client, Link], stream_settings: StreamSettings, size: int
) -> None:
    client, between = cut
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await reader.hand_over(entry, Stream.ROLLOUTS, scored(0, size))
    far = Run(client, run.keys.run, stream_settings).consumer(Stream.ROLLOUTS)
    (entry,) = await far.read(1)
    call = await provide(client)
    before, written = await blobs(redis, run), int((await redis.info("stats"))["total_net_input_bytes"])
    between.lose_answer_to(call)
    assert await far.pass_on(entry, Stream.SCORED, b"\x22\x00")  # an empty scored_at
    assert between.lost == 1
    assert int((await redis.info("stats"))["total_net_input_bytes"]) - written < LARGE // 2
    assert await blobs(redis, run) == before
    assert len(before) == (size == LARGE)
    assert not await run.consumer(Stream.ROLLOUTS).pass_on(entry, Stream.SCORED, b"late")
    (found,) = await run.consumer(Stream.SCORED).read(1)
    assert found.payload == entry.payload + b"\x22\x00"
    assert found.size == found.ref.size == len(found.payload)
    assert (await audit(redis, run, None)).problems == {}
    await run.consumer(Stream.SCORED).end(found.ref, End.dropped("test"))
    assert await redis.keys(run.keys.blob("*")) == []
    assert (await audit(redis, run, None)).problems == {}


async def test_a_payload_whose_blob_was_lost_is_written_again_with_more_behind_it(redis: Redis, run: Run) -> None:
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await reader.hand_over(entry, Stream.ROLLOUTS, scored(0, LARGE))
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    await redis.delete(*await blobs(redis, run))
    assert await reader.pass_on(entry, Stream.SCORED, b"\x22\x00")
    (found,) = await run.consumer(Stream.SCORED).read(1)
    assert found.payload == entry.payload + b"\x22\x00"
    assert (await audit(redis, run, None)).problems == {}


async def test_a_large_payload_whose_answer_was_lost_stays_for_ever_and_once(
    redis: Redis, run: Run, stream_settings: StreamSettings, cut: tuple[Client, Link]
) -> None:
    client, between = cut
    far = Run(client, run.keys.run, stream_settings)
    reader = far.consumer(Stream.PROMPTS)
    for i in range(2):
        assert await far.admit(i, prompt(i), 10) == "ok"
    first, second = await reader.read(2)
    assert await reader.hand_over(first, Stream.ROLLOUTS, scored(0))
    call = await provide(client)
    between.lose_answer_to(call)
    assert await reader.hand_over(second, Stream.ROLLOUTS, scored(1, LARGE))
    asked = prompt(2)
    asked.text = "x" * LARGE
    between.lose_answer_to(call)
    assert await far.admit(2, asked, 10) == "done"
    assert between.lost == 2
    assert len(await redis.keys(run.keys.blob("*"))) == len(await blobs(redis, run)) == 2
    assert len(await run.consumer(Stream.ROLLOUTS).read(10)) == 2
    assert len(await run.consumer(Stream.PROMPTS).read(10)) == 1
    assert (await audit(redis, run, None)).problems == {}


async def test_a_large_payload_for_a_server_that_has_forgotten_its_scripts(redis: Client, run: Run) -> None:
    await run.admit(0, prompt(0), 10)
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await (redis.function_flush() if redis.has_functions else redis.script_flush())
    assert await reader.hand_over(entry, Stream.ROLLOUTS, scored(0, LARGE))
    assert (await audit(redis, run, None)).problems == {}


async def test_a_large_payload_that_finds_no_room_takes_none_and_its_producer_is_seen_waiting(
    redis: Redis, stream_settings: StreamSettings
) -> None:
    run = Run(redis, "test-no-room", stream_settings.model_copy(update={"max_bytes": LARGE * 3 // 2}))
    await run.open()
    for i in range(2):
        await run.admit(i, prompt(i), 10)
    reader, after = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
    first, second = await reader.read(2)
    await reader.hand_over(first, Stream.ROLLOUTS, scored(0, LARGE))
    assert not await run.has_waiting_producer(Stream.ROLLOUTS)
    waiting = asyncio.create_task(reader.hand_over(second, Stream.ROLLOUTS, scored(1, LARGE)))
    async with asyncio.timeout(20):
        while not await run.has_waiting_producer(Stream.ROLLOUTS):  # noqa: ASYNC110  # Redis has no event
            await asyncio.sleep(0.01)
    assert len(await redis.keys(run.keys.blob("*"))) == 1
    (entry,) = await after.read(1)
    await after.end(entry, End.dropped("test"))
    assert await waiting
    async with asyncio.timeout(20):
        while await run.has_waiting_producer(Stream.ROLLOUTS):  # noqa: ASYNC110  # Redis has no event
            await asyncio.sleep(0.01)
    assert (await audit(redis, run, None)).problems == {}


async def test_consumers_that_are_gone_are_removed_unless_they_hold_something(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    settings = stream_settings.model_copy(update={"idle_seconds": 60.0})

    def pod(name: str, **changes: Any) -> Consumer:
        chosen = settings.model_copy(update={"consumer": name, **changes})
        return Consumer(redis, run.keys, Stream.PROMPTS, chosen)

    await run.admit(0, prompt(0), 10)
    assert len(await pod("holds").read(1)) == 1
    for i in range(40):
        await pod(f"gone-{i}").read(1)
    key, group = run.keys(Stream.PROMPTS), READERS[Stream.PROMPTS]
    await pod("early").read(1)  # which finds nobody silent for long enough
    assert len(await redis.xinfo_consumers(key, group)) == 42
    holder = pod("holds", idle_seconds=0.001)
    async with asyncio.timeout(20):
        while len(found := await redis.xinfo_consumers(key, group)) > 1:
            await asyncio.sleep(0.02)
            await holder.read(1)
    assert [(consumer["name"], consumer["pending"]) for consumer in found] == [(b"holds", 1)]


async def test_what_is_vouched_for_is_no_dead_letter_and_what_another_took_over_is_left_to_it(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    settings = stream_settings.model_copy(update={"idle_seconds": 60.0})

    def process() -> Consumer:
        return Consumer(redis, run.keys, Stream.PROMPTS, settings)

    for i in range(2):
        await run.admit(i, prompt(i), 10)
    for _ in range(stream_settings.max_deliveries):
        reader = process()
        entries = await reader.read(2)
        assert len(entries) == 2
        await reader.vouch(entries[0])
    (kept,) = await process().read(2)
    assert kept.id == entries[0].id
    assert (await run.ledger()).dead == {"max_deliveries": kept.trajectories}
    other = Consumer(redis, run.keys, Stream.PROMPTS, settings.model_copy(update={"consumer": "other"}))
    await redis.xclaim(run.keys(Stream.PROMPTS), READERS[Stream.PROMPTS], "other", 0, [kept.id])
    await reader.vouch(kept)
    (pending,) = await redis.xpending_range(run.keys(Stream.PROMPTS), READERS[Stream.PROMPTS], "-", "+", 9)
    assert (pending["consumer"], pending["times_delivered"]) == (b"other", 2)
    assert await other.end(kept, End.dropped("test"))


async def test_an_entry_that_is_settled_while_it_is_swept_is_not_given_out_again(
    redis: Redis, run: Run, stream_settings: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = stream_settings.model_copy(update={"idle_seconds": 0.001})
    reader = Consumer(redis, run.keys, Stream.PROMPTS, settings)
    await run.admit(0, prompt(0), 10)
    (entry,) = await reader.read(1)
    await asyncio.sleep(0.05)
    claim = redis.xautoclaim

    async def settle_meanwhile(*args: Any, **options: Any) -> Any:
        answer = await claim(*args, **options)
        assert await reader.end(entry, End.dropped("test"))
        return answer

    monkeypatch.setattr(redis, "xautoclaim", settle_meanwhile)
    assert await reader.read(1) == []


async def test_the_server_says_what_it_is(redis: Redis, redis_binary: str) -> None:
    assert await server_release(redis) == release_of(redis_binary)


def test_an_entry_can_be_kept_without_its_payload() -> None:
    entry = Entry("1-0", "0/0", 4, b"x" * 7, 1)
    assert (entry.ref.size, entry.ref.group) == (7, "0/0")
    assert not any(isinstance(getattr(entry.ref, name), bytes) for name in entry.ref.__slots__)
