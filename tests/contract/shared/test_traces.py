"""A prompt's trace on real streams: where its context goes, how it ends, and that redelivery has the same parent."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.settings import StreamSettings
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.collector import Collector

CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE, SPAN = CONTEXT.split("-")[1:3]
PROMPT = pb.Prompt(prompt_id="00000000", text="x", sampling=pb.SamplingParams(n=4))


async def only_entry(redis: Redis, key: str) -> Any:
    """The id and the fields of the one entry of a stream."""
    entries: Any = await redis.xrange(key)
    (entry,) = entries
    return entry


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.mark.parametrize("inline_bytes", [32 << 10, 256], ids=["in the entry", "beside the stream"])
@pytest.mark.parametrize("is_on", [True, False], ids=["on", "off in this service"])
async def test_the_context_goes_with_the_group(
    redis: Redis, run: Run, stream_settings: StreamSettings, collector: Collector, inline_bytes: int, is_on: bool
) -> None:
    """Through services that do not record as well: whoever does goes on with the same trace."""
    run = Run(redis, run.keys.run, stream_settings.model_copy(update={"inline_bytes": inline_bytes}))
    prompt = pb.Prompt(prompt_id="00000000", text="x" * 1000, sampling=pb.SamplingParams(n=4))
    with collector.tracing(endpoint=collector.url if is_on else None):
        assert await run.admit(0, prompt, tickets=1, traceparent=CONTEXT) == "ok"
        for source, destination in ((Stream.PROMPTS, Stream.ROLLOUTS), (Stream.ROLLOUTS, Stream.SCORED)):
            reader = run.consumer(source)
            (entry,) = await reader.read(1)
            assert entry.traceparent == CONTEXT
            assert await reader.hand_over(entry, destination, prompt)
        reader = run.consumer(Stream.SCORED)
        (entry,) = await reader.read(1)
        assert await reader.end(entry.ref, End.trained(7))
    waits, ends = collector.named("wait in stream"), collector.named("trained")
    assert [span.attributes["stream"] for span in waits] == (["prompts", "rollouts", "scored"] if is_on else [])
    assert [span.attributes for span in ends] == (
        [{"group": "00000000/0", "stream": "scored", "step": 7}] if is_on else []
    )
    assert all((span.trace, span.parent) == (TRACE, SPAN) for span in collector.spans)
    assert all(0 <= span.ended - span.began < 60e9 for span in waits), "the time since the entry was written"


async def test_a_group_without_a_trace_has_no_field_for_it(redis: Redis, run: Run, collector: Collector) -> None:
    with collector.tracing():
        assert await run.admit(0, PROMPT, tickets=1) == "ok"
        reader = run.consumer(Stream.PROMPTS)
        (entry,) = await reader.read(1)
        await reader.hand_over(entry, Stream.ROLLOUTS, PROMPT)
        _, fields = await only_entry(redis, run.keys(Stream.ROLLOUTS))
        assert sorted(fields) == [b"g", b"n", b"p"]
    assert collector.spans == []


async def test_a_drop_ends_the_trace_with_its_reason_once(run: Run, collector: Collector) -> None:
    with collector.tracing():
        assert await run.admit(0, PROMPT, tickets=1, traceparent=CONTEXT) == "ok"
        reader = run.consumer(Stream.PROMPTS)
        (entry,) = await reader.read(1)
        assert await reader.end(entry, End.dropped("aborted"))
        assert not await run.consumer(Stream.PROMPTS).end(entry, End.dropped("aborted"))
    (dropped,) = collector.named("dropped")
    assert dropped.attributes == {"group": "00000000/0", "stream": "prompts", "reason": "aborted"}
    assert (dropped.failed, dropped.trace, dropped.parent) == ("aborted", TRACE, SPAN)


async def test_a_dead_letter_ends_the_trace_and_a_replay_goes_on_with_it(run: Run, collector: Collector) -> None:
    with collector.tracing():
        assert await run.admit(0, PROMPT, tickets=1, traceparent=CONTEXT) == "ok"
        reader = run.consumer(Stream.PROMPTS)
        (entry,) = await reader.read(1)
        assert await reader.bury(entry, "bad_prompt", "text of the prompt")
        (letter,) = await run.dead.ids()
        await run.dead.replay(letter)
        (again,) = await reader.read(1)
        assert again.traceparent == CONTEXT
    (dead,) = collector.named("dead")
    assert dead.attributes == {"group": "00000000/0", "stream": "prompts", "reason": "bad_prompt"}
    assert {span.parent for span in collector.spans} == {SPAN}


async def test_one_delivered_too_often_ends_its_trace_though_nobody_read_its_payload(
    redis: Redis, run: Run, stream_settings: StreamSettings, collector: Collector
) -> None:
    with collector.tracing():
        assert await run.admit(0, PROMPT, tickets=1, traceparent=CONTEXT) == "ok"
        for _ in range(stream_settings.max_deliveries):
            (entry,) = await run.consumer(Stream.PROMPTS).read(1)  # by a process that dies with it
            assert entry.traceparent == CONTEXT
        assert await run.consumer(Stream.PROMPTS).read(1) == []
    deliveries = [span.attributes["deliveries"] for span in collector.named("wait in stream")]
    assert deliveries == [1, 2, 3]
    assert len({span.began for span in collector.named("wait in stream")}) == 1, "each since the entry was written"
    (dead,) = collector.named("dead")
    assert (dead.failed, dead.trace, dead.parent) == ("max_deliveries", TRACE, SPAN)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff" * 55, b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", b"x" * 1_000_000, CONTEXT[:-2].encode()],
    ids=["empty", "no text", "zeros", "long", "cut"],
)
async def test_garbage_on_the_stream_costs_the_trace_alone(
    redis: Redis, run: Run, collector: Collector, garbage: bytes
) -> None:
    with collector.tracing():
        assert await run.admit(0, PROMPT, tickets=1, traceparent=CONTEXT) == "ok"
        key = run.keys(Stream.PROMPTS)
        id_, fields = await only_entry(redis, key)
        await redis.xdel(key, id_)
        await redis.xadd(key, {**fields, b"t": garbage})
        reader = run.consumer(Stream.PROMPTS)
        (entry,) = await reader.read(1)
        assert await reader.hand_over(entry, Stream.ROLLOUTS, PROMPT)
        _, handed = await only_entry(redis, run.keys(Stream.ROLLOUTS))
        assert sorted(handed) == [b"g", b"n", b"p"], "and goes no further"
    assert collector.spans == []
