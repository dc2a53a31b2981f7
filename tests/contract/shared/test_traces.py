"""Traces on real streams and in real calls: where the context goes, how it ends, and what a hostile one costs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.clients import GenerationClient, RewardClient
from shared.errors import InvalidInputError
from shared.settings import AccessSettings, StreamSettings
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracing import spans
from shared.tracing.kinds import EVALUATE
from tests.support.access import CODE, SAMPLER, STRANGER, bearer, code_of, serving
from tests.support.collector import Collector
from tests.support.entries import until

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
    assert all(0 <= span.ended - span.began < 3600e9 for span in waits), "the time since the entry was written"


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


async def test_a_wait_for_a_full_stream_is_a_span(
    redis: Redis, run: Run, stream_settings: StreamSettings, collector: Collector
) -> None:
    run = Run(redis, run.keys.run, stream_settings.model_copy(update={"max_bytes": 1 << 16}))
    message = pb.Prompt(text="x" * 40_000)
    with collector.tracing():
        for index, context in enumerate((CONTEXT, "")):
            assert await run.admit(index, pb.Prompt(prompt_id=f"{index:08d}"), 2, traceparent=context) == "ok"
        writer, reader = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
        traced, other = await writer.read(2)
        await writer.hand_over(other, Stream.ROLLOUTS, message)
        waiting = asyncio.create_task(writer.hand_over(traced, Stream.ROLLOUTS, message))
        await until(lambda: run.has_waiting_producer(Stream.ROLLOUTS))
        (entry,) = await reader.read(1)
        await reader.end(entry, End.dropped("stale"))
        assert await waiting
    (room,) = collector.named("wait for room")
    assert (room.attributes, room.trace, room.parent) == ({"stream": "rollouts"}, TRACE, SPAN)
    assert room.ended > room.began


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


async def test_a_call_goes_with_the_trace_of_its_caller(collector: Collector) -> None:
    with collector.tracing("curriculum", share=1e-12):
        async with serving() as (address, _), GenerationClient(address) as generation, RewardClient(address) as reward:
            await generation.status()  # of no trace
            with spans.span(EVALUATE, CONTEXT) as block:
                await asyncio.gather(generation.generate("?"), generation.status())
                with pytest.raises(InvalidInputError):
                    await reward.score("unknown", "?", ["x"], {"not": object()})
                await reward.verifiers()
            assert block.traceparent
    (caller,) = collector.named("evaluate problem")
    calls = collector.named("serve call")
    assert {(call.trace, call.parent, call.role) for call in calls} == {(TRACE, caller.id, "server")}
    assert sorted(call.attributes["method"].rpartition("/")[2] for call in calls) == [
        "Generate", "GetStatus", "ListVerifiers",
    ]  # fmt: skip


async def test_a_stream_of_answers_is_one_call(collector: Collector) -> None:
    with collector.tracing():
        async with serving() as (address, _):
            metadata = (("traceparent", CONTEXT),)
            assert await code_of(address, method="GenerateStream", metadata=metadata) is CODE.OK
    (call,) = collector.named("serve call")
    assert (call.trace, call.parent) == (TRACE, SPAN)
    assert call.attributes == {"method": "routershift.v1.GenerationService/GenerateStream"}


@pytest.mark.parametrize("value", ["", "garbage", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", CONTEXT[:-2] + "00"])
async def test_a_caller_with_a_hostile_context_is_answered_as_without(collector: Collector, value: str) -> None:
    with collector.tracing():
        async with serving() as (address, _):
            assert await code_of(address, metadata=(("traceparent", value),)) is CODE.OK
    assert collector.spans == []


async def test_who_is_not_admitted_records_nothing(collector: Collector, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"sample {SAMPLER}\n")
    with collector.tracing():
        async with serving(AccessSettings(tokens=tmp_path / "tokens")) as (address, _):
            for token, code in ((STRANGER, CODE.UNAUTHENTICATED), (SAMPLER, CODE.OK)):
                metadata = (*bearer(token), ("traceparent", CONTEXT))
                assert await code_of(address, metadata=metadata) is code
    (call,) = collector.spans
    assert (call.trace, call.parent) == (TRACE, SPAN)
