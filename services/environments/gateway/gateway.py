"""The agent gateway, put together: an HTTP endpoint before a policy."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.routing import Mount

from services.environments.gateway.app import Completions, make_app, plain_routes
from services.environments.gateway.episode_routes import episode_routes
from services.environments.gateway.episodes import Episodes
from services.environments.gateway.inference import Inference
from services.environments.gateway.model import Policy, Texts
from services.environments.gateway.opening import Opening
from services.environments.gateway.server import GatewayServer
from services.environments.gateway.session import Plain
from services.environments.gateway.settings import GatewaySettings
from services.environments.playing.limits import EpisodeLimits
from services.environments.registry import Configured
from services.environments.tool_calls.base import Parser
from shared.process.service import background
from shared.rpc.address import join
from shared.settings import AccessSettings, ServerSettings


class Gateway:
    """Serves inference for anybody, and `episodes` for agents."""

    def __init__(
        self,
        settings: GatewaySettings,
        server: ServerSettings,
        access: AccessSettings,
        *,
        model: Path,
        longest: int,
        max_tokens: int,
        policy: Policy,
        waiting: Policy,
        parser: Parser | None,
        limits: EpisodeLimits,
        environments: Mapping[str, Configured],
    ) -> None:
        """
        Args:
            server: of the service.
            model: its folder.
            longest: tokens that it takes.
            max_tokens: sampled in all turns of an episode together: rollout.max_tokens.
            policy: for requests of anybody.
            waiting: for turns of episodes that are trained on: it waits for a generation that has no room, or is
                started again.
            parser: of its calls.
            environments: by name, for episodes that are opened.

        Raises:
            NotFoundError, CorruptDataError, InvalidInputError: no tokenizer, or a file of [access] that is none.
        """
        self.model = settings.model_name or model.name
        self._host = server.host
        texts = Texts(model, longest)
        completions = Completions(Inference(policy, waiting, texts, self.model, parser), self.model)
        self.episodes = Episodes(limits, texts, settings.records)
        self.opening = Opening(self.episodes, texts, environments, max_model_len=longest, max_tokens=max_tokens)
        routes = [
            *plain_routes(completions, Plain(texts)),
            *episode_routes(completions, self.episodes, self.opening),
        ]
        # Agents that are started here have a path each, which tells whose claims they are.
        app = make_app([*routes, Mount("/agents/{agent}", routes=routes)])
        self._server = GatewayServer(app, settings, access, server)

    def listen(self) -> str:
        """Takes the port; gives the address, as in http://127.0.0.1:8000. Raises as `GatewayServer.listen`."""
        port = self._server.listen()
        self.address = f"{self._server.scheme}://{join(self._host, port)}"
        return self.address

    @property
    def requests(self) -> int:
        """In progress."""
        return self._server.requests

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        await self._server.serve(stop)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves for as long as the block lasts, and answers what is in progress then."""
        stop, stopped = asyncio.Event(), asyncio.Event()

        async def serve() -> None:
            try:
                await self.serve(stop)
            finally:
                stopped.set()

        async with background(serve()):
            try:
                yield
            finally:
                self.episodes.close_all()
                stop.set()
                await stopped.wait()
