"""The learner service: wiring."""

import asyncio
from typing import ClassVar

from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from services.learner import checkpoint
from services.learner.server import LearnerServicer
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from services.learner.worker import LearnerWorker
from shared import rpc
from shared.service import Service, background
from shared.streams.keys import Stream
from shared.streams.run import Run


class LearnerService(Service):
    name: ClassVar[str] = "learner"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servicer = LearnerServicer()
        settings.run.require_model()

    def register(self, server: rpc.Server) -> list[str]:
        lrn_grpc.add_LearnerServiceServicer_to_server(self._servicer, server.grpc)
        return [lrn.DESCRIPTOR.services_by_name["LearnerService"].full_name]

    async def start(self, run: Run) -> None:
        settings = self._settings
        trainer = await asyncio.to_thread(Trainer, settings.learner, settings.run)
        contained = await asyncio.to_thread(checkpoint.load_latest, settings.run.path / "checkpoints", trainer)
        self._consumer = run.consumer(Stream.SCORED)
        self._worker = LearnerWorker(settings, trainer, run, self._consumer, contained)
        await self._worker.announce_start()
        self._servicer.open(self._worker)

    async def work(self, stop: asyncio.Event) -> None:
        async with background(self._consumer.beat()):
            await self._worker.run(stop)

    async def close(self) -> None:
        pass
