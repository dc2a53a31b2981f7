"""A learner that is told to pause, or pauses itself, on a real Redis."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.learner.checkpointing import checkpoint
from services.learner.data.batch import Group
from services.learner.monitoring.report import StepReport
from shared.errors import DeadlineError
from shared.streams.consumer import Entry
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import PAUSED, TRAINING, Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables


async def test_pause_checkpoint_and_resume(run: Run, tmp_path: Path, model: Path, groups: list[Group]) -> None:
    settings = tables(tmp_path, model, steps=1, checkpoints__every=100)
    async with Learning(settings, run) as learning:
        assert await learning.worker.pause() == 0
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
        path = await asyncio.wait_for(learning.worker.checkpoint_now(), 10)
        checkpoint.verify(path)
        assert (await run.progress()).phase == PAUSED
        assert learning.trainer.step == 0
        await learning.worker.resume()
        await until(lambda: nothing_in_flight(run))
        assert learning.trainer.step == 1


@asynccontextmanager
async def read_in_progress(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The learner has read the groups of a whole step when this is entered, and is given them when it is left."""
    read, began, go_on = learning.consumer.read, asyncio.Event(), asyncio.Event()

    async def held(*arguments: Any, **named: Any) -> list[Entry]:
        entries = await read(*arguments, **named)
        if len(entries) == GROUPS:
            began.set()
            await go_on.wait()
        return entries

    monkeypatch.setattr(learning.consumer, "read", held)
    async with asyncio.timeout(30):
        await began.wait()
    yield
    go_on.set()


async def test_no_step_begins_after_a_pause_that_came_during_a_read(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(tables(tmp_path, model, steps=3), run) as learning:
        async with read_in_progress(learning, monkeypatch):
            assert await learning.worker.pause() == 0
        await learning.worker.checkpoint_now()  # the loop has come round
        assert learning.trainer.step == 0
        assert (await run.progress()).phase == PAUSED
        await learning.worker.resume()
        await until(lambda: nothing_in_flight(run))
    assert learning.trainer.step == 1


async def test_a_checkpoint_that_is_wanted_during_a_read_waits_for_no_step(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(tables(tmp_path, model, steps=3), run) as learning:
        async with read_in_progress(learning, monkeypatch):
            wanted = asyncio.create_task(learning.worker.checkpoint_now())
            await asyncio.sleep(0)
        assert checkpoint.step_of(await wanted) == 0
        await until(lambda: nothing_in_flight(run))
    assert learning.trainer.step == 1


async def test_no_step_begins_after_a_stop_that_came_during_a_read(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(tables(tmp_path, model, steps=3), run) as learning, read_in_progress(learning, monkeypatch):
        learning.stop.set()
    assert learning.trainer.step == 0
    assert (await run.ledger()).in_flight == GROUPS * SAMPLES


async def test_of_a_pause_and_a_resume_the_run_knows_the_later(
    run: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, slow = run.report_progress, asyncio.Event()

    async def held(progress: Progress) -> None:
        if progress.phase == PAUSED:
            await slow.wait()
        await report(progress)

    async with Learning(tables(tmp_path, model), run) as learning:
        monkeypatch.setattr(run, "report_progress", held)
        pausing = asyncio.create_task(learning.worker.pause())
        await asyncio.sleep(0)
        resuming = asyncio.create_task(learning.worker.resume())
        await asyncio.wait({resuming}, timeout=0.5)
        slow.set()
        await asyncio.gather(pausing, resuming)
        assert (await run.progress()).phase == TRAINING


async def test_a_step_that_a_pause_waits_for_counts_as_time_of_training(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    settings = tables(tmp_path, model, steps=3)
    async with Learning(settings, run) as learning:
        train, since = learning.trainer.train_step, time.monotonic()

        def held(*arguments: Any) -> StepReport:
            began.set()
            assert go_on.wait(60)
            return train(*arguments)

        monkeypatch.setattr(learning.trainer, "train_step", held)
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
        assert await asyncio.to_thread(began.wait, 60)
        pausing = asyncio.create_task(learning.worker.pause())
        await asyncio.wait({pausing}, timeout=0.5)
        go_on.set()
        spent = time.monotonic() - since
        assert await pausing == 1
    resumed = checkpoint.load_latest(settings.run.checkpoints_root, learning.trainer)
    assert resumed.meta["spent"]["seconds"] >= spent


async def test_a_checkpoint_that_waits_for_too_long_a_step_names_the_setting(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    patience = {"checkpoints__step_seconds": 0.1, "checkpoints__disk_seconds": 0.0}
    async with Learning(tables(tmp_path, model, steps=1, **patience), run) as learning:
        train = learning.trainer.train_step

        def held(*arguments: Any) -> StepReport:
            began.set()
            assert go_on.wait(60)
            return train(*arguments)

        monkeypatch.setattr(learning.trainer, "train_step", held)
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
        assert await asyncio.to_thread(began.wait, 60)
        try:
            with pytest.raises(DeadlineError, match=r"raise learner\.checkpoints\.step_seconds, 0\.1"):
                await learning.worker.checkpoint_now()
        finally:
            go_on.set()


async def test_pause_answers_once_the_step_in_progress_has_ended(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    async with Learning(tables(tmp_path, model, steps=3), run) as learning:
        train = learning.trainer.train_step

        def held(*arguments: Any) -> StepReport:
            began.set()
            assert go_on.wait(60)
            return train(*arguments)

        monkeypatch.setattr(learning.trainer, "train_step", held)
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
        assert await asyncio.to_thread(began.wait, 60)
        pausing = asyncio.create_task(learning.worker.pause())
        await asyncio.wait({pausing}, timeout=0.5)
        assert not pausing.done()
        go_on.set()
        assert await pausing == 1
        await learning.worker.resume()
        await until(lambda: nothing_in_flight(run))
    assert learning.trainer.step == 2


async def test_a_reward_that_collapses_pauses_the_learner_until_a_person_resumes_it(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    """Groups without any reward teach nothing and are dropped, but they are seen."""
    settings = tables(tmp_path, model, steps=5, collapse__window=1, collapse__pause=True)
    good, bad = [message(g, i) for i, g in enumerate(groups[:GROUPS])], [message(g, 9) for g in groups[2:6]]
    for made in bad:
        for trajectory in made.trajectories:
            trajectory.score.reward = 0.0
    async with Learning(settings, run) as learning:
        await put(run, Stream.SCORED, *good, *bad)

        async def paused() -> bool:
            return learning.worker.status().phase == PAUSED

        await until(paused)
        assert (await run.progress()).phase == PAUSED
        assert REGISTRY.get_sample_value("routershift_learner_reward_collapsed") == 1
        await learning.worker.resume()
        await put(run, Stream.SCORED, *(message(g, 9) for g in groups[6 : 6 + GROUPS]))
        await until(lambda: nothing_in_flight(run))
        assert learning.trainer.step == 2


async def test_no_step_begins_with_the_group_in_which_the_reward_collapses(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    """A group of lower, unequal rewards can be trained on, and fills the batch."""
    made = [message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])]
    for index, group in enumerate(made):
        for sample, trajectory in enumerate(group.trajectories):
            trajectory.score.reward = 1.0 - 0.1 * sample if index < GROUPS else 0.1 * sample
    async with Learning(tables(tmp_path, model, steps=5, collapse__window=1, collapse__pause=True), run) as learning:
        await put(run, Stream.SCORED, *made)

        async def filled_and_paused() -> bool:
            progress = await run.progress()
            return progress.phase == PAUSED and progress.collected == GROUPS

        await until(filled_and_paused)
        await learning.worker.checkpoint_now()  # the loop has come round
        assert learning.trainer.step == 1
        await learning.worker.resume()
        await until(lambda: nothing_in_flight(run))
    assert learning.trainer.step == 2
