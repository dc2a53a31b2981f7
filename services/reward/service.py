"""The reward service: wiring."""

import asyncio
from typing import ClassVar

from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from services.reward.early import EarlyScores
from services.reward.scoring import Scorer
from services.reward.server import RewardServicer
from services.reward.settings import Settings
from services.reward.unscored import UnscoredSamples
from services.reward.verifiers.registry import make_verifiers
from services.reward.worker import RewardWorker
from shared.process.service import Service, background
from shared.rpc.server import Server
from shared.streams.keys import Stream
from shared.streams.run import Run


class RewardService(Service):
    name: ClassVar[str] = "reward"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.reward
        self._folder = settings.run.path
        self._scorer = Scorer(make_verifiers(settings.reward.verifiers), settings.reward)
        self._early = EarlyScores(self._scorer, settings.reward.max_early)

    def register(self, server: Server) -> list[str]:
        rew_grpc.add_RewardServiceServicer_to_server(RewardServicer(self._scorer, self._early), server.grpc)
        return [rew.DESCRIPTOR.services_by_name["RewardService"].full_name]

    async def start(self, run: Run) -> None:
        await self._scorer.start(self._settings.verifiers)  # those in the recipe are wanted; others may go unused
        self._consumer = run.consumer(Stream.ROLLOUTS)
        unscored = UnscoredSamples(self._folder, self._consumer.name, self._settings.unscored)
        self._worker = RewardWorker(
            self._consumer, self._scorer, self._early, self._settings.attempts, run.solve_rates, unscored
        )

    async def work(self, stop: asyncio.Event) -> None:
        async with background(self._consumer.beat()):
            await self._consumer.each(
                self._worker.handle, lambda: self._settings.groups_in_flight - self._consumer.held, stop
            )

    async def close(self) -> None:
        await self._scorer.close()
