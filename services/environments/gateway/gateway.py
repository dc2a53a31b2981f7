"""The agent gateway, put together: an HTTP endpoint before a policy."""

import asyncio
from pathlib import Path

from services.environments.gateway.app import Completions, make_app, plain_routes
from services.environments.gateway.inference import Inference, Plain
from services.environments.gateway.model import Policy, Texts
from services.environments.gateway.server import GatewayServer
from services.environments.gateway.settings import GatewaySettings
from services.environments.tool_calls.base import Parser
from shared.rpc.address import join
from shared.settings import AccessSettings, ServerSettings


class Gateway:
    """Serves inference for anybody."""

    def __init__(
        self,
        settings: GatewaySettings,
        server: ServerSettings,
        access: AccessSettings,
        *,
        model: Path,
        longest: int,
        policy: Policy,
        parser: Parser | None,
    ) -> None:
        """Args: server: of the service; model: its folder; longest: tokens that it takes; parser: of its calls.

        Raises:
            NotFoundError, CorruptDataError, InvalidInputError: no tokenizer, or a file of [access] that is none.
        """
        self.model = settings.model_name or model.name
        self._host = server.host
        texts = Texts(model, longest)
        completions = Completions(Inference(policy, texts, self.model, parser), self.model)
        self._server = GatewayServer(make_app(plain_routes(completions, Plain(texts))), settings, access, server)

    def listen(self) -> str:
        """Takes the port; gives the address, as in http://127.0.0.1:8000. Raises as `GatewayServer.listen`."""
        port = self._server.listen()
        return f"{self._server.scheme}://{join(self._host, port)}"

    async def serve(self, stop: asyncio.Event) -> None:
        await self._server.serve(stop)
