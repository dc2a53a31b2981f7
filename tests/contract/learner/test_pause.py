"""A learner that is told to pause, or pauses itself, on a real Redis."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.learner.checkpointing import checkpoint
from services.learner.data.batch import Group
from services.learner.monitoring.report import StepReport
from shared.errors import DeadlineError
from shared.streams.keys import Stream
from shared.streams.run import PAUSED, Run
from tests.support.entries import message, put, until
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
