"""A learner that sends versions over the network, and replicas of generation that take them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import EngineOptions
from services.generation.engines.torch.engine import TorchEngine
from services.generation.engines.torch.model import _tensors_of
from services.generation.weights import presence
from services.generation.weights.loader import WeightsLoader
from services.learner.checkpointing.announcer import Announcer
from services.learner.checkpointing.sending import Sending
from services.learner.distributed.ranks import Ranks
from services.learner.settings import Settings as LearnerTables
from shared.process.service import background
from shared.settings import RunSettings
from shared.streams.run import Run
from tests.support.entries import until
from tests.support.models import MAX_MODEL_LEN
from tests.support.settings import learner_settings
from tests.support.transfers import Holding, changed, tensors_of


def run_settings(folder: Path, model: Path, **run: Any) -> RunSettings:
    return RunSettings(id="sent", folder=folder, model=model, weights_transfer="broadcast", **run)


class Learner:
    """Takes versions in memory and announces them; there is no file of any."""

    def __init__(self, run: Run, folder: Path, model: Path, *, full_every: int = 0, **settings: Any) -> None:
        table = run_settings(folder, model, weights_full_every=full_every)
        self.tables = LearnerTables(run=table, learner=learner_settings(**settings))
        self.weights = Holding(tensors_of(model))
        sending = Sending(self.weights, Ranks.open(), self.tables.learner, keeps_changes=full_every > 0)
        self.announcer, self._sending = Announcer(self.tables, run, sending), sending
        sending.take()
        self.announcer.begin(0)

    async def publish(self, version: int) -> None:
        """The model that all begin with, with a few entries changed for each version."""
        self.weights.tensors = changed(self.weights.tensors, 0.01, seed=version)
        await self.announcer.settled()
        sizes = await asyncio.to_thread(self._sending.take)
        await self.announcer.announce(pb.WeightsManifest(version=version, folder=f"v{version:08d}"), sizes)

    def is_served_by(self, engine: TorchEngine) -> bool:
        """Whether it has all of these weights bit for bit."""
        found = _tensors_of(engine._batch.policy)
        return all(torch.equal(found[name].to(t.dtype), t) for name, t in self.weights.tensors.items())


@asynccontextmanager
async def replica(run: Run, name: str, model: Path, empty: Path) -> AsyncIterator[TorchEngine]:
    """A replica of generation that has registered and follows the announcements, and sees no weights on disk."""
    engine = TorchEngine(model, EngineOptions(MAX_MODEL_LEN))
    await engine.start()
    loader = WeightsLoader(engine, empty, name)
    try:
        async with background(loader.follow(run.newest_weights, 0.005), presence.beat(run, name, engine)):

            async def is_known() -> bool:
                return name in await run.replicas()

            await until(is_known)
            yield engine
    finally:
        await engine.close()


async def serves(engine: TorchEngine, version: int) -> None:
    async def it_does() -> bool:
        return engine.version == version

    await until(it_does)
