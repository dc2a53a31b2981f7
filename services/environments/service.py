"""The environments service: wiring."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from routershift import wire
from routershift.trajectory import RouterExport
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from services.environments.gateway.processes import agents
from services.environments.hosting import HostedEpisodes
from services.environments.playing.player import Player
from services.environments.playing.policy import Policy
from services.environments.playing.rendering import Rendering
from services.environments.registry import make_environments
from services.environments.server import EnvironmentsServicer
from services.environments.settings import Settings
from services.environments.tool_calls.base import Parser
from services.environments.tool_calls.registry import make_parser
from services.environments.worker import EnvironmentsWorker
from shared.clients import GenerationClient
from shared.models.chat import ChatTemplate
from shared.models.tokenizer import load_tokenizer
from shared.process.service import Service, background
from shared.rpc.server import Server
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.weights.freshness import Freshness

_POLL_SECONDS = 0.2  # between looks at the version that generation serves

if TYPE_CHECKING:  # it needs packages of an extra
    from services.environments.gateway.gateway import Gateway

log = logging.getLogger(__name__)


class EnvironmentsService(Service):
    name: ClassVar[str] = "environments"
    has_payloads: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self._tables, self._settings = settings, settings.environments
        self._environments = make_environments(settings.environments.named)
        self._servicer = EnvironmentsServicer(self._environments, settings.environments)
        self._gateway: Gateway | None = None

    def register(self, server: Server) -> list[str]:
        env_grpc.add_EnvironmentServiceServicer_to_server(self._servicer, server.grpc)
        return [env.DESCRIPTOR.services_by_name["EnvironmentService"].full_name]

    async def start(self, run: Run) -> None:
        self._rendering, self._parser = await asyncio.to_thread(self._load)
        self._hosted = HostedEpisodes(self._environments, self._settings, self._rendering.vocab_size)
        self._servicer.open(self._hosted)
        self._consumer, self._solve_rates = run.consumer(Stream.EPISODES), run.solve_rates
        self._newest_weights = run.newest_weights

    async def work(self, stop: asyncio.Event) -> None:
        client = GenerationClient(self._settings.generation_address, self._settings.answer_seconds, self._tables.access)
        async with client, background(self._consumer.beat(), self._hosted.watch()):
            policy = Policy(client, self._settings.answer_seconds)
            worker = asyncio.create_task(self._worker(policy))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({worker, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop.is_set():
                worker.cancel()
                return
            ready = worker.result()
            async with self._agents():
                await ready.run(self._settings.groups_in_flight, stop, self._settings.drain_seconds)

    async def close(self) -> None:
        await self._servicer.close()

    async def _worker(self, policy: Policy) -> EnvironmentsWorker:
        """Made of what generation says of its model, as soon as it serves."""
        status, tables = await policy.status(), self._tables
        if self._settings.gateway.enabled:
            self._gateway = self._make_gateway(status.max_model_len)
        player = Player(
            policy,
            self._environments,
            self._rendering,
            self._settings,
            max_model_len=status.max_model_len,
            max_tokens=tables.rollout.max_tokens,
            seed=tables.run.seed,
            parser=self._parser,
            agents=self._gateway.episodes if self._gateway else None,
        )
        self._servicer.play_with(player)
        exports = status.HasField("router_layout") and (
            status.router_export != wire.ROUTER_EXPORT_CODES[RouterExport.NONE]
        )
        freshness = Freshness(
            policy.version,
            self._newest_weights,
            tables.run.max_staleness,
            self._settings.weights_wait_seconds,
            poll_seconds=_POLL_SECONDS,
        )
        return EnvironmentsWorker(
            self._consumer,
            player,
            freshness.wait,
            policy.away,
            self._settings.attempts,
            self._solve_rates,
            return_router=exports,
        )

    def _make_gateway(self, max_model_len: int) -> "Gateway":
        """Raises ModuleNotFoundError without the packages of the extra `gateway`; else as `Gateway`."""
        from services.environments.gateway.gateway import Gateway

        settings, access = self._settings, self._tables.access
        self._asking = GenerationClient(settings.generation_address, settings.gateway.request_seconds, access)
        return Gateway(
            settings.gateway,
            settings,
            access,
            model=self._tables.run.model_folder(weights=False),
            longest=max_model_len,
            max_tokens=self._tables.rollout.max_tokens,
            policy=self._asking,
            waiting=Policy(self._asking, settings.answer_seconds, full_seconds=settings.answer_seconds),
            parser=self._parser,
            limits=settings,
            environments=self._environments,
        )

    @asynccontextmanager
    async def _agents(self) -> AsyncIterator[None]:
        """Serves the gateway, where there is one, also while work in progress ends: agents have a part in it."""
        if self._gateway is None:
            yield
            return
        log.info("environments serves HTTP at %s", address := self._gateway.listen())
        self._servicer.serve_agents(self._gateway)
        async with self._asking, self._gateway.serving(), agents(self._environments, self._gateway.episodes, address):
            yield

    def _load(self) -> tuple[Rendering, Parser | None]:
        folder = self._tables.run.model_folder(weights=False)
        tokenizer = load_tokenizer(folder)
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        return Rendering(tokenizer, ChatTemplate(tokenizer, folder)), make_parser(self._settings.tool_calls, template)
