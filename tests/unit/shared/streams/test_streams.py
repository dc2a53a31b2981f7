"""The data path on a real Redis: admission, hand-over, redelivery, dead letters, and a ledger that always balances."""

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError, UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.consumer import Consumer, End, Entry, parse
from shared.streams.keys import STAGES, Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, Run

GROUP = 4


def prompt(index: int, text: str = "1,2,3:6=") -> pb.Prompt:
    return pb.Prompt(prompt_id=f"{index:08d}", text=text, sampling=pb.SamplingParams(n=GROUP))


async def admit(run: Run, count: int, tickets: int = 100) -> list[str]:
    return [await run.admit(i, prompt(i), tickets) for i in range(count)]


def consumer(redis: Redis, run: Run, stream: Stream, settings: StreamSettings, name: str = "one") -> Consumer:
    return Consumer(redis, run.keys, stream, settings.model_copy(update={"consumer": name}))


async def read_all(reader: Consumer) -> list[Entry]:
    entries = []
    while batch := await reader.read(100):
        entries += batch
    return entries


async def balanced(run: Run) -> bool:
    return (await run.ledger()).balanced


async def test_admission_is_bounded_by_tickets_and_survives_a_lost_answer(run: Run) -> None:
    assert await admit(run, 3, tickets=2) == ["ok", "ok", "tickets"]
    assert await run.admit(1, prompt(1), tickets=2) == "done"  # asked again because its answer was lost
    ledger = await run.ledger()
    assert (ledger.prompted, ledger.in_flight) == (2 * GROUP, 2 * GROUP)
    backlog = await run.backlog()
    assert backlog[Stream.PROMPTS].entries == 2
    assert backlog[Stream.PROMPTS].oldest_seconds >= backlog[Stream.ROLLOUTS].oldest_seconds == 0
    assert await run.next_prompt() == 2
    await run.return_tickets(["00000000/0"])
    assert await run.admit(2, prompt(2), tickets=2) == "ok"


async def test_prompts_of_an_environment_have_a_stream_of_their_own_and_share_tickets_and_room(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    played = prompt(1)
    played.environment = "calculator"
    assert await run.admit(0, prompt(0), tickets=3) == "ok"
    assert await run.admit(1, played, tickets=3) == "ok"
    (entry,) = await run.consumer(Stream.EPISODES).read(9)
    assert pb.Prompt.FromString(entry.payload) == played
    assert len(await run.consumer(Stream.PROMPTS).read(9)) == 1
    assert (await run.ledger()).stages["prompted"] == 2 * GROUP

    small = Run(redis, run.keys.run, stream_settings.model_copy(update={"max_bytes": 1 << 16}))
    large = prompt(2)
    large.text = "x" * (1 << 16)
    assert await small.admit(2, large, tickets=3) == "full"  # what lies on the other stream counts
    large.environment = "calculator"
    assert await small.admit(2, large, tickets=3) == "full"
    assert await run.admit(2, played, tickets=2) == "tickets"


async def test_prompts_that_redis_has_forgotten_are_admitted_again(redis: Redis, run: Run) -> None:
    assert await admit(run, 2) == ["ok", "ok"]
    await redis.hset(run.keys.progress, "prompts", 1)  # as after a crash that cost the last write
    assert await run.admit(2, prompt(2), tickets=100) == "back"
    assert await run.next_prompt() == 1


async def test_nothing_is_admitted_once_the_learner_has_finished(run: Run) -> None:
    assert await admit(run, 1) == ["ok"]
    await run.report_progress(Progress(phase=FINISHED))
    assert await run.admit(1, prompt(1), tickets=100) == "finished"
    assert (await run.ledger()).prompted == GROUP


async def test_a_group_passes_every_stream_and_the_account_balances_at_each_step(redis: Redis, run: Run) -> None:
    await admit(run, 1)
    message: pb.Prompt | pb.TrajectoryGroup = prompt(0)
    for source, destination in ((Stream.PROMPTS, Stream.ROLLOUTS), (Stream.ROLLOUTS, Stream.SCORED)):
        reader = run.consumer(source)
        (entry,) = await reader.read(10)
        assert entry.payload == message.SerializeToString()
        message = pb.TrajectoryGroup(prompt=prompt(0))
        assert await reader.hand_over(entry, destination, message)
        assert await balanced(run)
        assert (await run.ledger()).stages[STAGES[destination]] == GROUP
        backlog = await run.backlog()
        assert backlog[source].entries == backlog[source].bytes == 0
        assert backlog[destination].bytes == len(message.SerializeToString())
    reader = run.consumer(Stream.SCORED)
    (entry,) = await reader.read(10)
    assert await reader.end(entry, End.trained(1))
    ledger = await run.ledger()
    assert (ledger.trained, ledger.in_flight) == (GROUP, 0)
    assert ledger.balanced
    assert await run.tickets_held() == 0
    ((_, fields),) = cast(Any, await redis.xrange(run.keys.ended))
    assert fields == {b"g": b"00000000/0", b"n": b"4", b"e": b"trained", b"s": b"1"}


async def test_an_entry_is_handed_over_once_by_two_that_believe_they_own_it(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admit(run, 1)
    slow = consumer(redis, run, Stream.PROMPTS, stream_settings, "slow")
    quick = consumer(redis, run, Stream.PROMPTS, stream_settings, "quick")
    (held,) = await slow.read(1)
    await asyncio.sleep(stream_settings.idle_seconds * 1.5)
    (claimed,) = await quick.read(1)
    assert claimed.id == held.id
    assert claimed.deliveries == 2
    group = pb.TrajectoryGroup(prompt=prompt(0))
    answers = await asyncio.gather(
        slow.hand_over(held, Stream.ROLLOUTS, group), quick.hand_over(claimed, Stream.ROLLOUTS, group)
    )
    assert sorted(answers) == [False, True]
    assert (await run.backlog())[Stream.ROLLOUTS].entries == 1
    assert await balanced(run)


async def test_a_heartbeat_keeps_an_entry_and_its_end_loses_it(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admit(run, 1)
    owner = consumer(redis, run, Stream.PROMPTS, stream_settings, "owner")
    other = consumer(redis, run, Stream.PROMPTS, stream_settings, "other")
    (held,) = await owner.read(1)
    beating = asyncio.create_task(owner.beat())
    for _ in range(6):
        assert await other.read(1) == []
        await asyncio.sleep(stream_settings.idle_seconds / 2)
    beating.cancel()
    await asyncio.sleep(stream_settings.idle_seconds * 1.5)
    assert [entry.id for entry in await other.read(1)] == [held.id]


async def test_a_heartbeat_does_not_steal_back_what_was_taken_over(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admit(run, 1)
    old = consumer(redis, run, Stream.PROMPTS, stream_settings, "old")
    new = consumer(redis, run, Stream.PROMPTS, stream_settings, "new")
    await old.read(1)
    await asyncio.sleep(stream_settings.idle_seconds * 1.5)
    (taken,) = await new.read(1)
    beating = asyncio.create_task(old.beat())
    await asyncio.sleep(stream_settings.idle_seconds)
    beating.cancel()
    (pending,) = await redis.xpending_range(run.keys(Stream.PROMPTS), "generation", taken.id, taken.id, 1)
    assert pending["consumer"] == b"new"


async def test_a_restarted_consumer_gets_its_own_entries_first(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admit(run, 3)
    before = await consumer(redis, run, Stream.PROMPTS, stream_settings).read(2)
    restarted = consumer(redis, run, Stream.PROMPTS, stream_settings)
    after = await read_all(restarted)
    assert [entry.id for entry in after[:2]] == [entry.id for entry in before]
    assert [entry.deliveries for entry in after] == [2, 2, 1]


async def test_what_is_delivered_too_often_goes_to_the_dead_letters(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admit(run, 1)
    for _ in range(stream_settings.max_deliveries):
        assert len(await consumer(redis, run, Stream.PROMPTS, stream_settings).read(1)) == 1
    assert await consumer(redis, run, Stream.PROMPTS, stream_settings).read(1) == []
    entries: Any = await redis.xrange(run.keys.dead)
    ((_, fields),) = entries
    letter = pb.DeadLetter.FromString(fields[b"p"])
    assert letter.reason == "max_deliveries"
    assert (letter.group, letter.trajectories) == ("00000000/0", GROUP)
    assert letter.payload == prompt(0).SerializeToString()
    ledger = await run.ledger()
    assert ledger.dead == {"max_deliveries": GROUP}
    assert ledger.balanced
    assert await run.tickets_held() == 0


async def test_a_full_stream_makes_its_producer_wait_and_loses_nothing(
    redis: Redis, stream_settings: StreamSettings
) -> None:
    settings = stream_settings.model_copy(update={"max_bytes": 1 << 16})
    run = Run(redis, "test-full", settings)
    await run.open()
    await admit(run, 2)
    large = pb.TrajectoryGroup(prompt=prompt(0, text="x" * 40_000))
    producer, reader = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
    first, second = await producer.read(2)
    assert await producer.hand_over(first, Stream.ROLLOUTS, large)
    blocked = asyncio.create_task(producer.hand_over(second, Stream.ROLLOUTS, large))
    await asyncio.sleep(0.2)
    assert not blocked.done()
    (entry,) = await reader.read(10)
    await reader.end(entry, End.dropped("test"))
    assert await asyncio.wait_for(blocked, 5)
    assert await balanced(run)


async def test_a_group_that_was_deleted_is_created_again(redis: Redis, run: Run) -> None:
    await admit(run, 1)
    await redis.xgroup_destroy(run.keys(Stream.PROMPTS), "generation")
    reader = run.consumer(Stream.PROMPTS)
    assert len(await read_all(reader) or await read_all(reader)) == 1


async def test_each_finishes_what_it_holds_after_stop(run: Run) -> None:
    await admit(run, 5)
    reader, stop, done = run.consumer(Stream.PROMPTS), asyncio.Event(), list[str]()

    async def handle(entry: Entry) -> None:
        stop.set()
        await asyncio.sleep(0.2)
        await reader.end(entry, End.dropped("test"))
        done.append(entry.id)

    await reader.each(handle, room=lambda: 2 - reader.held, stop=stop)
    assert len(done) == 2
    assert reader.held == 0
    assert await balanced(run)


async def test_a_failing_handler_ends_the_loop(run: Run) -> None:
    await admit(run, 1)

    async def handle(entry: Entry) -> None:
        raise RuntimeError("engine died")

    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(run.consumer(Stream.PROMPTS).each(handle, lambda: 2, asyncio.Event()), 5)
    assert caught.group_contains(RuntimeError, match="engine died")


async def test_a_cancellation_is_never_lost(redis: Redis, run: Run) -> None:
    async def loop() -> None:
        while True:
            await run.consumer(Stream.PROMPTS).read(1)

    for _ in range(20):
        task = asyncio.create_task(loop())
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        assert done


async def test_the_newest_weights_win(run: Run) -> None:
    assert await run.newest_weights() is None
    for version in (1, 2, 3):
        await run.announce(pb.WeightsManifest(version=version))
    newest = await run.newest_weights()
    assert newest is not None
    assert newest.version == 3


def test_a_payload_that_is_no_message_is_refused() -> None:
    with pytest.raises(CorruptDataError, match=r"3 bytes is no routershift\.v1\.Prompt"):
        parse(pb.Prompt, Entry("1-0", "g", GROUP, b"\xff\xff\xff", 1))


async def test_a_redis_that_is_not_there_is_one_clear_error_without_the_password() -> None:
    settings = RedisSettings(url="redis://:secret@127.0.0.1:1/0", connect_seconds=0.5)
    with pytest.raises(UnavailableError, match="set REDIS_URL") as caught:
        await connect(settings)
    assert "secret" not in str(caught.value)
