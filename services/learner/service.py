"""The learner service: wiring."""

import asyncio
import logging
from typing import ClassVar

from routershift.v1 import learner_pb2 as lrn
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from services.learner import metrics
from services.learner.checkpointing import checkpoint
from services.learner.ending import Spent
from services.learner.follower import Followers
from services.learner.server import LearnerServicer
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from services.learner.worker import LearnerWorker
from shared.process.metrics import GPUS
from shared.process.service import Service, background
from shared.rpc.server import Server
from shared.streams.keys import Stream
from shared.streams.run import Run

log = logging.getLogger(__name__)


class LearnerService(Service):
    name: ClassVar[str] = "learner"
    has_payloads: ClassVar[bool] = True
    is_exclusive: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servicer = LearnerServicer()
        self._followers = Followers()
        settings.run.require_model()

    def register(self, server: Server) -> list[str]:
        lrn_grpc.add_LearnerServiceServicer_to_server(self._servicer, server.grpc)
        return [lrn.DESCRIPTOR.services_by_name["LearnerService"].full_name]

    async def start(self, run: Run) -> None:
        settings, self._run = self._settings, run
        await self._followers.start(settings.learner, settings.run, settings.rollout, settings.payloads)
        async with background(self._followers.watch()):
            self._trainer = await asyncio.to_thread(
                Trainer, settings.learner, settings.run, settings.rollout, None, run.bulk
            )
            GPUS.set(self._trainer.gpus)
            resumed = await asyncio.to_thread(checkpoint.load_latest, settings.run.checkpoints_root, self._trainer)
            _say(resumed, self._trainer.step)
            self._consumer = run.consumer(Stream.SCORED)
            self._worker = LearnerWorker(
                settings, self._trainer, run, self._consumer, resumed.trained, Spent.of(resumed.meta)
            )
            await self._worker.start()
        self._servicer.open(self._worker)

    async def work(self, stop: asyncio.Event) -> None:
        beside = [self._consumer.beat(), self._followers.watch()]
        if sweep := self._run.sweep(self._settings.payloads):
            beside.append(sweep.run())
        async with background(*beside):
            await self._worker.run(stop)
        await self._worker.close()
        await asyncio.to_thread(self._trainer.close)
        await self._followers.ended()

    async def close(self) -> None:
        await self._followers.close()


def _say(resumed: checkpoint.Resumed, step: int) -> None:
    metrics.TORN.inc(len(resumed.torn))
    for reason in resumed.torn:
        log.error("a checkpoint is torn and was set aside: %s", reason)
    if resumed.forgotten:
        log.error("%d groups were trained on after the checkpoint of step %d and are lost", resumed.forgotten, step)
    if step:
        log.info("going on from step %d, with %d groups trained on", step, len(resumed.trained))
