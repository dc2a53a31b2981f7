"""What the learner records of the groups that it trains on or drops, and of its steps."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.learner.data.batch import Group
from shared.errors import PreconditionError
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.collector import Collector, Found
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables

TRACES = [f"{number:032x}" for number in range(1, 9)]
SPAN = "00f067aa0ba902b7"
CONTEXTS = [f"00-{trace}-{SPAN}-01" for trace in TRACES]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def of_trace(collector: Collector, trace: str) -> dict[str, Found]:
    """The spans of a prompt's trace by name; all are children of the first one."""
    found = [span for span in collector.spans if span.trace == trace]
    assert {span.parent for span in found} == {SPAN}
    names = [span.name for span in found if span.name != "wait in stream"]
    assert len(set(names)) == len(names)
    return {span.name: span for span in found}


async def test_a_group_is_followed_to_its_step_and_a_dropped_one_to_its_reason(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], collector: Collector
) -> None:
    flat, torn = message(groups[2], 2), message(groups[3], 3)
    for trajectory in flat.trajectories:
        trajectory.score.reward = 0.1
    torn.trajectories[2].completion.router_trace.crc32 ^= 1
    untraced = message(groups[1], 1)
    made = [flat, torn, message(groups[0], 0), untraced]
    with collector.tracing("learner", share=1e-12):
        await put(run, Stream.SCORED, *made, traceparents=CONTEXTS[:3])
        async with Learning(tables(tmp_path, model, steps=1), run):
            await until(lambda: nothing_in_flight(run))
    dropped, dead, whole = (of_trace(collector, trace) for trace in TRACES[:3])
    assert dropped["dropped"].failed == "zero_variance"
    assert dead["dead"].failed == "bad_trajectory"
    assert "train on group" not in dropped.keys() | dead.keys()
    tokens = sum(sample.completion.token_ids.size for sample in groups[0].samples)
    assert whole["train on group"].attributes == {"step": 1, "staleness": 0, "samples": SAMPLES, "tokens": tokens}
    assert whole["trained"].attributes == {"group": "00000002/0", "stream": "scored", "step": 1}
    (step,) = collector.named("step")
    assert step.attributes == {"step": 1, "groups": GROUPS}, "the whole step, though one of its groups has no trace"
    assert whole["train on group"].links == [(step.trace, step.id)]
    assert whole["wait for step"].ended == whole["train on group"].began >= step.began
    inner = {span.name for span in collector.spans if span.trace == step.trace and span.parent == step.id}
    assert inner == {"collate", "publish weights", "write checkpoint"}
    assert {span.trace for span in collector.spans} == {*TRACES[:3], step.trace}


async def test_a_step_of_groups_without_a_trace_is_not_recorded(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], collector: Collector
) -> None:
    with collector.tracing("learner"):
        await put(run, Stream.SCORED, *(message(group, i) for i, group in enumerate(groups[:GROUPS])))
        async with Learning(tables(tmp_path, model, steps=1), run):
            await until(lambda: nothing_in_flight(run))
    assert collector.spans == []


async def test_a_skipped_step_fails_in_the_trace_of_each_group(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], collector: Collector
) -> None:
    with collector.tracing("learner"):
        made = [message(group, i) for i, group in enumerate(groups[:GROUPS])]
        await put(run, Stream.SCORED, *made, traceparents=CONTEXTS[:GROUPS])
        learning = Learning(tables(tmp_path, model, optimizer__max_skipped=1), run)
        with torch.no_grad():
            learning.trainer._policy.model.lm_head.weight.fill_(torch.nan)
        with pytest.raises(PreconditionError, match="non_finite"):
            await asyncio.wait_for(learning.worker.run(learning.stop), 60)
    for trace in TRACES[:GROUPS]:
        spans = of_trace(collector, trace)
        assert spans["train on group"].failed == spans["dropped"].failed == "non_finite"
    (step,) = collector.named("step")
    assert step.attributes["skipped"] == "non_finite"
    assert step.failed == "PreconditionError", "what ended the learner"


async def test_what_was_trained_on_twice_after_a_crash_has_the_same_parent(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], collector: Collector
) -> None:
    settings = tables(tmp_path, model, steps=2, checkpoints__every=100)
    made = [message(group, i) for i, group in enumerate(groups[:GROUPS])]
    with collector.tracing("learner"):
        await put(run, Stream.SCORED, *made, traceparents=CONTEXTS[:GROUPS])
        crashing = Learning(settings, run)
        await crashing.worker.start()
        task = asyncio.create_task(crashing.worker.run(crashing.stop))

        async def trained() -> bool:
            return crashing.trainer.step == 1 and not await run.tickets_held()

        await until(trained)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with Learning(settings, run) as again:
            await until(lambda: is_step(again, 1))
    for trace in TRACES[:GROUPS]:
        found = [span for span in collector.spans if span.trace == trace]
        assert {span.parent for span in found} == {SPAN}
        assert [span.attributes["step"] for span in found if span.name == "train on group"] == [1, 1]
        waits = [span for span in found if span.attributes.get("stream") == "scored" and span.name == "wait in stream"]
        assert len(waits) == 2
        assert waits[0].began == waits[1].began, "both since the entry was written"
        assert [span.name for span in found].count("trained") == 1


async def is_step(learning: Learning, step: int) -> bool:
    return learning.trainer.step == step
