"""Where traces begin: with the admission of a prompt, and with a problem that is asked in an evaluation."""

import asyncio
import collections
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter

from services.curriculum import metrics
from services.curriculum.evaluation import evaluate
from services.curriculum.problems import TaskProblems
from services.curriculum.settings import Settings
from services.curriculum.worker import CurriculumWorker
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.collector import Collector, Found
from tests.support.curriculum import PROBLEMS, TASK, HandWritten, servers, until

TICKETS = 6


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@asynccontextmanager
async def feeding(run: Run, settings: Settings) -> AsyncIterator[None]:
    task = asyncio.create_task(CurriculumWorker(settings, TaskProblems(TASK, settings), run).feed())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def grows(counter: Counter, by: float) -> None:
    """Until the curriculum itself has counted so many more than at first."""
    goal = counter._value.get() + by

    async def there() -> bool:
        return bool(counter._value.get() >= goal)

    await until(there)


def context(span: Found) -> str:
    """As in a traceparent, without its flags."""
    return f"00-{span.trace}-{span.id}"


async def test_a_trace_begins_with_each_prompt_that_is_admitted_and_with_no_other(
    run: Run, tmp_path: Path, collector: Collector
) -> None:
    reader = run.consumer(Stream.PROMPTS)
    async with servers(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        with collector.tracing("curriculum"):
            waits = metrics.WAIT_SECONDS.labels("tickets")
            async with feeding(run, settings):
                await grows(waits, settings.curriculum.poll_seconds)  # all tickets are given, and one is waited for
                first, *others = await reader.read(100)
                last = asyncio.create_task(grows(metrics.PROMPTS, 1))
                await asyncio.sleep(0)
                await reader.end(first, End.dropped("aborted"))
                await last
            others += await reader.read(100)
    admissions = collector.named("admit prompt")
    assert [span.attributes["group"] for span in admissions] == [f"{index:08d}/0" for index in range(TICKETS + 1)]
    assert all(span.parent == "" for span in admissions)
    assert [context(span) for span in admissions] == [entry.traceparent[:-3] for entry in (first, *others)]
    assert {(span.attributes["verifier"], span.attributes["samples"]) for span in admissions} == {("countdown", 8)}
    assert [span.attributes["tickets_seconds"] for span in admissions[:TICKETS]] == [0] * TICKETS
    assert admissions[-1].attributes["tickets_seconds"] > 0
    assert {span.attributes["full_seconds"] for span in admissions} == {0}


async def test_a_prompt_whose_answer_was_lost_has_its_trace_once(
    run: Run, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = run.admit

    async def losing(*arguments: Any) -> str:
        """As a connection does that breaks before the answer: it is asked again, with the same arguments."""
        await admit(*arguments)
        return await admit(*arguments)

    monkeypatch.setattr(run, "admit", losing)
    async with servers(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        with collector.tracing("curriculum"):
            async with feeding(run, settings):
                await grows(metrics.WAIT_SECONDS.labels("tickets"), settings.curriculum.poll_seconds)
            entries = await run.consumer(Stream.PROMPTS).read(100)
    written = [entry.traceparent[:-3] for entry in entries]
    assert len(written) == TICKETS
    assert [context(span) for span in collector.named("admit prompt")] == written


async def test_an_evaluated_problem_is_a_trace_with_the_calls_that_answer_it(
    run: Run, tmp_path: Path, collector: Collector
) -> None:
    async with servers(HandWritten(right=lambda version, index: 1), run, tmp_path) as settings:
        with collector.tracing("curriculum"):
            await evaluate(TaskProblems(TASK, settings).held_out()[0], 3, settings)
    problems = collector.named("evaluate problem")
    assert len(problems) == len(PROBLEMS)
    assert all((span.parent, span.attributes["version"]) == ("", 3) for span in problems)
    for problem in problems:
        calls = [span for span in collector.named("serve call") if span.parent == problem.id]
        assert {call.trace for call in calls} == {problem.trace}
        methods = collections.Counter(call.attributes["method"].rpartition("/")[2] for call in calls)
        assert methods == {"Generate": 2, "Score": 1}, "sampled and greedy"
