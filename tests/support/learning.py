"""The learner's loop as a task, its settings, and what to wait for."""

import asyncio
from pathlib import Path
from typing import Any

from services.learner.checkpointing import checkpoint
from services.learner.ending import Spent
from services.learner.settings import Settings as LearnerTables
from services.learner.trainer import Trainer
from services.learner.worker import LearnerWorker
from shared.settings import RolloutSettings, RunSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES
from tests.support.settings import learner_settings

GROUPS = 2  # a step


def tables(folder: Path, model: Path, steps: int = 2, **learner: Any) -> LearnerTables:
    settings = {"checkpoints__every": 1, **learner}
    return LearnerTables(
        run=RunSettings(
            id="learn",
            folder=folder,
            model=model,
            steps=steps,
            groups_per_step=GROUPS,
            max_staleness=1,
        ),
        rollout=RolloutSettings(n=SAMPLES),
        learner=learner_settings(**settings),
    )


class Learning:
    """A learner's loop as a task."""

    def __init__(self, settings: LearnerTables, run: Run) -> None:
        self.trainer = Trainer(settings.learner, settings.run, settings.rollout)
        resumed = checkpoint.load_latest(settings.run.path / "checkpoints", self.trainer)
        self.consumer = run.consumer(Stream.SCORED)
        self.worker = LearnerWorker(settings, self.trainer, run, self.consumer, resumed.trained, Spent.of(resumed.meta))
        self.stop = asyncio.Event()

    async def __aenter__(self) -> "Learning":
        await self.worker.start()
        self._task = asyncio.create_task(self.worker.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait_for(self._task, 30)


async def nothing_in_flight(run: Run) -> bool:
    return (await run.ledger()).in_flight == 0


async def no_tickets(run: Run) -> bool:
    return await run.tickets_held() == 0


def checkpoint_steps(settings: LearnerTables) -> list[int]:
    return sorted(checkpoint.step_of(path) for path in (settings.run.path / "checkpoints").glob("step-*"))
