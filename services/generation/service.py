"""The generation service: wiring."""

import asyncio
import logging
import socket
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import ClassVar

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation.early.stop import EarlyStop
from services.generation.engines.registry import make_engine
from services.generation.requests.validation import Requests
from services.generation.routes import check_layers
from services.generation.server import GenerationServicer
from services.generation.settings import Settings
from services.generation.watch import EngineWatch
from services.generation.weights import presence
from services.generation.weights.loader import WeightsLoader
from services.generation.weights.source import check_memory
from services.generation.worker import GenerationWorker
from shared.clients import RewardClient
from shared.process.metrics import GPUS
from shared.process.service import Service, background
from shared.rpc.server import Server
from shared.streams.capacity import check_step_fits, check_store_fits, trajectory_bytes
from shared.streams.consumer import Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracing import spans
from shared.tracing.kinds import WEIGHTS, Nothing
from shared.weights.freshness import Freshness

log = logging.getLogger(__name__)


class GenerationService(Service):
    name: ClassVar[str] = "generation"
    has_payloads: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servicer = GenerationServicer(settings.generation)
        self._engine = make_engine(settings)
        self._name = presence.replica_name(settings.streams.consumer or socket.gethostname())
        self._first = 0  # version below which no prompts are taken
        self._opened = AsyncExitStack()

    def register(self, server: Server) -> list[str]:
        gen_grpc.add_GenerationServiceServicer_to_server(self._servicer, server.grpc)
        return [gen.DESCRIPTOR.services_by_name["GenerationService"].full_name]

    async def start(self, run: Run) -> None:
        engine, settings = self._engine, self._settings
        if settings.run.weights_full_every and not self._over_network:
            check_memory(settings.run.model_folder())
        await engine.start()
        GPUS.set(engine.info.gpus)
        chosen = settings.generation
        check_layers(chosen, engine.info.router_layout)
        longest = partial(
            trajectory_bytes,
            settings.run,
            settings.rollout,
            engine.info.router_layout,
            chosen.router_export,
            chosen.router_scores,
            chosen.router_layers,
        )
        on_stream = longest(without_arrays=run.bulk is not None)
        check_step_fits(settings.run, settings.rollout, settings.streams, on_stream)
        if run.bulk:
            check_store_fits(settings.run, settings.rollout, run.bulk.store, longest() - on_stream)
        requests = await asyncio.to_thread(Requests, settings.run.model_folder(), engine.info, chosen.max_tokens)
        self._run = run
        self._loader = loader = WeightsLoader(engine, settings.run.weights_root, self._name, run.announced_weights)
        await self._restore(await run.announced_weights())
        self._servicer.open(engine, requests, loader)
        self._consumer = run.consumer(Stream.PROMPTS)
        samples, early = settings.rollout.n, settings.rollout.early_stop
        reward, early_stop = None, EarlyStop(early, samples) if early.first else None
        if chosen.early_scores or early_stop:
            client = RewardClient(chosen.reward_address, chosen.early_seconds, settings.access)
            reward = await self._opened.enter_async_context(client)
        self._worker = GenerationWorker(self._consumer, engine, requests, chosen, samples, reward, early_stop)
        self._freshness = Freshness(
            self._version,
            run.newest_weights,
            settings.run.max_staleness,
            settings.generation.weights_wait_seconds,
            refused=lambda: loader.refused,
        )
        self._watch = EngineWatch(engine, settings.generation.stall_seconds)

    async def work(self, stop: asyncio.Event) -> None:
        tasks = [
            self._loader.follow(self._run.newest_weights, self._settings.generation.weights_poll_seconds),
            self._consumer.beat(),
            self._watch.run(),
        ]
        if self._over_network:
            tasks.append(presence.beat(self._run, self._name, self._engine))
        async with background(*tasks):
            await self._consumer.each(self._handle, self._room, stop)

    async def close(self) -> None:
        await self._opened.aclose()
        await self._engine.close()

    async def _handle(self, entry: Entry) -> None:
        began = time.time()
        if await self._freshness.wait():
            spans.record(WEIGHTS, entry.traceparent, Nothing(), began)
        await self._worker.handle(entry)

    async def _version(self) -> int:
        return self._engine.version

    @property
    def _over_network(self) -> bool:
        return self._settings.run.weights_transfer == "broadcast"

    async def _restore(self, announced: list[pb.WeightsManifest]) -> None:
        """Goes on from the newest version that is whole. One whose files are not here is waited for, over the network.

        Raises:
            NotFoundError, CorruptDataError, InvalidInputError, PreconditionError: none is whole, and none will come.
        """
        error = await self._loader.restore(announced)
        if error is None:
            return
        if not self._over_network:
            raise error
        self._first = 1
        log.warning("no announced version can be read here; the learner is asked to send the newest")

    def _room(self) -> int:
        """0 until weights newer than the starting model are loaded: their samples would be too stale."""
        return 0 if self._engine.version < self._first else self._worker.room()
