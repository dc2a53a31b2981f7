"""The curriculum service: wiring. Its gRPC server has health and reflection only."""

import asyncio
from typing import ClassVar

from services.curriculum.origin import make_problems
from services.curriculum.settings import Settings
from services.curriculum.worker import CurriculumWorker
from shared.process.service import Service, background
from shared.rpc.server import Server
from shared.streams.run import Run
from shared.streams.saved import restore_lost


class CurriculumService(Service):
    name: ClassVar[str] = "curriculum"
    is_exclusive: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def register(self, server: Server) -> list[str]:
        return []

    async def start(self, run: Run) -> None:
        # Reading rows takes a while: it must not hold up the event loop.
        problems = await asyncio.to_thread(make_problems, self._settings)
        await restore_lost(run, self._settings.run.checkpoints_root)
        self._worker = CurriculumWorker(self._settings, problems, run)

    async def work(self, stop: asyncio.Event) -> None:
        # An admission is one transaction and an evaluation can be made again: there is nothing to drain.
        async with background(self._worker.watch(), self._worker.run()):
            await stop.wait()
        await self._worker.close()

    async def close(self) -> None:
        pass
