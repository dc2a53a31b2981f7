"""The curriculum behind real servers: a policy written by hand answers, so that every number is known beforehand."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum import worker as worker_module
from services.curriculum.evaluation import evaluate
from services.curriculum.problems import TaskProblems
from services.curriculum.worker import CurriculumWorker
from shared.errors import DeadlineError, PreconditionError
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, Run
from shared.tracking import records
from shared.weights import published
from tests.support.curriculum import EVERY, INDEX, PROBLEMS, SAMPLES, TASK, HandWritten, servers, training, until


async def test_sampled_and_greedy_accuracy_are_those_of_the_policy(run: Run, tmp_path: Path) -> None:
    engine = HandWritten(
        right=lambda version, index: (0, 1, 2, 3, 4, 0)[index], greedy=lambda version, index: index < 3
    )
    async with servers(engine, run, tmp_path) as settings:
        result = await evaluate(TaskProblems(TASK, settings).held_out()[0], 0, settings)
    assert (result.problems, result.samples) == (6, 24)
    assert result.accuracy == result.valid == 10 / 24
    assert result.greedy_accuracy == 3 / 6
    # One of two draws without replacement from 4 samples with c right ones: 0, 1/2, 5/6, 1, 1, 0.
    assert result.pass_at_k == pytest.approx({1: 10 / 24, 2: (1 / 2 + 5 / 6 + 1 + 1) / 6, 4: 4 / 6})
    sampled = [asked for asked in engine.asked if asked.temperature > 0]
    greedy = [asked for asked in engine.asked if asked.temperature == 0]
    assert {(asked.n, round(asked.temperature, 4), asked.max_tokens) for asked in sampled} == {(SAMPLES, 0.7, 12)}
    assert sorted(asked.seed or 0 for asked in sampled) == [0, 4, 8, 12, 16, 20]  # no two samples share a draw
    assert {(asked.n, asked.max_tokens) for asked in greedy} == {(1, 12)}
    assert len(greedy) == len(PROBLEMS)


async def test_an_evaluation_says_which_versions_answered(run: Run, tmp_path: Path) -> None:
    async def move_on() -> None:
        if len(engine.asked) == 5:
            engine.version = 13

    engine = HandWritten(right=lambda version, index: 1, before=move_on, version=10)
    async with servers(engine, run, tmp_path) as settings:
        result = await evaluate(TaskProblems(TASK, settings).held_out()[0], 10, settings)
    assert (result.version, result.oldest_version, result.newest_version) == (10, 10, 13)


async def test_the_start_every_multiple_and_the_end_are_evaluated_and_the_first_best_is_named(
    run: Run, tmp_path: Path
) -> None:
    right = {0: 1, 10: 3, 20: 3, 25: 2}
    async with training(HandWritten(right=lambda version, index: right[version]), run, tmp_path) as all_of_it:
        assert all_of_it.evaluated == [0]
        for version in (10, 20):
            await all_of_it.publish(version)
            await all_of_it.until("evaluated_version", version)
        await all_of_it.publish(25, FINISHED)
        await all_of_it.until("final_evaluation", 25)
        assert all_of_it.evaluated == [0, 10, 20, 25]
    progress = await run.progress()
    assert (progress.best_version, progress.best_accuracy) == (10, 3 / SAMPLES)
    assert (progress.accuracy, progress.greedy_accuracy) == (2 / SAMPLES, 0.0)


async def test_a_version_is_protected_from_its_publication_until_something_better_is_known(
    run: Run, tmp_path: Path
) -> None:
    during: list[set[int]] = []

    async def move_on() -> None:
        if engine.version == 10:
            await run.report_progress(Progress(version=35))
            during.append(published.protected_versions(await run.progress(), 35, EVERY))

    engine = HandWritten(right=lambda version, index: version > 0, before=move_on)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        assert during == [{0, 10, 30}] * 12
        assert published.protected_versions(await run.progress(), 35, EVERY) == {10, 30}


async def test_a_multiple_that_training_has_left_behind_is_passed_over(run: Run, tmp_path: Path) -> None:
    async def move_on() -> None:
        if engine.version == 10:
            await all_of_it.publish(23)

    engine = HandWritten(right=lambda version, index: 1, before=move_on)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        await asyncio.sleep(0.2)  # many looks at version 23
        await all_of_it.publish(30)
        await all_of_it.until("evaluated_version", 30)
        assert all_of_it.evaluated == [0, 10, 30]


async def test_a_multiple_that_was_due_when_the_run_was_stopped_has_its_turn(run: Run, tmp_path: Path) -> None:
    """Ctrl-C comes during the evaluation of version 10; the run goes on from the checkpoint of version 13."""
    reached, stands_still = asyncio.Event(), asyncio.Event()

    async def stand_still() -> None:
        if engine.version == 10:
            reached.set()
            await stands_still.wait()

    engine = HandWritten(right=lambda version, index: 1, before=stand_still)
    async with training(engine, run, tmp_path) as first:
        await first.publish(10)
        await asyncio.wait_for(reached.wait(), 30)
    stands_still.set()
    await run.report_progress(Progress(version=13))
    engine.version = 13
    async with training(engine, run, tmp_path) as second:
        await second.until("evaluated_version", 10)
        record = records.read(second.settings.run.path / records.EVALUATIONS)[-1]
    assert (record["version"], record["oldest_version"], record["newest_version"]) == (10, 13, 13)


async def test_a_long_evaluation_says_how_far_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_REPORT_SECONDS", 0.0)
    async with training(HandWritten(right=lambda version, index: 1), run, tmp_path) as all_of_it:
        assert all_of_it.evaluated == [0]
    assert (await run.progress()).evaluated_problems == len(PROBLEMS)


async def test_an_evaluation_that_fails_costs_only_itself(run: Run, tmp_path: Path) -> None:
    async def refuse() -> None:
        if engine.version == 10:
            raise PreconditionError("broken weights")

    async def refused() -> bool:
        return len(engine.asked) > 2 * len(PROBLEMS)

    engine = HandWritten(right=lambda version, index: 1, before=refuse)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await until(refused)
        await all_of_it.publish(20)
        await all_of_it.until("evaluated_version", 20)
        assert all_of_it.evaluated == [0, 20]


async def test_a_service_that_is_being_restarted_is_waited_for(run: Run, tmp_path: Path) -> None:
    """Generation goes away in the midst of each evaluation. No channel repeats a call whose deadline has passed."""
    failures = 0

    async def go_away() -> None:
        nonlocal failures
        if len(engine.asked) == 7:
            failures += 1
            raise DeadlineError("the engine is silent")

    engine = HandWritten(right=lambda version, index: 1, before=go_away)
    async with training(engine, run, tmp_path) as all_of_it:
        assert (failures, all_of_it.evaluated) == (1, [0])
        engine.asked.clear()
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        assert (failures, all_of_it.evaluated) == (2, [0, 10])


async def test_the_first_evaluation_gives_up_with_the_reason(run: Run, tmp_path: Path) -> None:
    async def go_away() -> None:
        raise DeadlineError("the engine is silent")

    async with servers(HandWritten(right=lambda version, index: 1, before=go_away), run, tmp_path) as settings:
        evaluation = settings.curriculum.evaluation.model_copy(update={"patience_seconds": 0.0})
        curriculum = settings.curriculum.model_copy(update={"evaluation": evaluation})
        worker = CurriculumWorker(
            settings.model_copy(update={"curriculum": curriculum}), TaskProblems(TASK, settings), run
        )
        with pytest.raises(
            DeadlineError, match=r"version 0 is not evaluated after \d+ s: Generate: the engine is silent"
        ) as given_up:
            await worker.evaluate_start()
        for setting in ("answer_seconds", "patience_seconds"):
            assert f"curriculum.evaluation.{setting}" in str(given_up.value)
    assert (await run.progress()).evaluated_version is None


async def test_a_restart_evaluates_nothing_twice(run: Run, tmp_path: Path) -> None:
    engine = HandWritten(right=lambda version, index: 1)
    async with training(engine, run, tmp_path) as first:
        await first.publish(10)
        await first.until("evaluated_version", 10)
    async with training(engine, run, tmp_path) as second:
        await second.publish(20)
        await second.until("evaluated_version", 20)
        assert second.evaluated == [0, 10, 20]


async def test_the_memory_of_redis_is_watched(run: Run, redis: Redis, tmp_path: Path) -> None:
    limit = 8 << 30
    await redis.config_set("maxmemory", limit)
    async with servers(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        watching = asyncio.create_task(CurriculumWorker(settings, TaskProblems(TASK, settings), run).watch())

        async def watched() -> bool:
            return REGISTRY.get_sample_value("routershift_redis_memory_limit_bytes") == limit

        try:
            await until(watched)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await redis.config_set("maxmemory", 0)
    assert 0 < (REGISTRY.get_sample_value("routershift_redis_memory_bytes") or 0) < limit


async def test_prompts_ask_for_what_the_run_says(run: Run, tmp_path: Path) -> None:
    async with servers(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        feeding = asyncio.create_task(CurriculumWorker(settings, TaskProblems(TASK, settings), run).feed())

        async def fed() -> bool:
            return await run.tickets_held() == settings.run.tickets

        await until(fed)
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    entries = await run.consumer(Stream.PROMPTS).read(100)
    prompts = [pb.Prompt.FromString(entry.payload) for entry in entries]
    assert len(prompts) == settings.run.tickets == 6
    assert {(p.sampling.n, p.sampling.max_tokens, round(p.sampling.temperature, 4)) for p in prompts} == {(8, 12, 0.7)}
    assert [p.sampling.seed for p in prompts] == list(range(0, 48, 8))
    assert not {p.text for p in prompts} & INDEX.keys()
