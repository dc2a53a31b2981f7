"""Environments behind gRPC, as others serve them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from routershift.v1 import environment_pb2_grpc as env_grpc
from services.environments.hosting import HostedEpisodes
from services.environments.registry import Configured
from services.environments.server import EnvironmentsServicer
from services.environments.settings import EnvironmentsSettings
from shared.rpc.server import Server
from shared.settings import AccessSettings


@asynccontextmanager
async def environment_server(
    environments: Mapping[str, Configured], port: int = 0, access: AccessSettings | None = None, **settings: Any
) -> AsyncIterator[tuple[int, EnvironmentsServicer]]:
    """Its port, and what answers; `settings` are of [environments]."""
    table = EnvironmentsSettings(**settings)
    server, servicer = Server(access), EnvironmentsServicer(environments, table)
    env_grpc.add_EnvironmentServiceServicer_to_server(servicer, server.grpc)
    bound = await server.listen("127.0.0.1", port, ["routershift.v1.EnvironmentService"])
    servicer.open(HostedEpisodes(environments, table, 1 << 31))
    try:
        yield bound, servicer
    finally:
        await servicer.close()
        await asyncio.shield(server.stop(0))
