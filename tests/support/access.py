"""A server of both services with access settings and limits, and what it answers to whom."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from routershift.client.channel import open_channel
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import reward_pb2_grpc as rew_grpc
from shared.rpc.server import Server
from shared.settings import AccessSettings, ServerSettings
from tests.support.certificates import Authority

SAMPLER, SCORER, OPERATOR, STRANGER = (letter * 32 for letter in "abcd")
CODE = grpc.StatusCode
REQUESTS: dict[str, Any] = {
    "Generate": gen.GenerateRequest(text="?"),
    "GenerateStream": gen.GenerateStreamRequest(),
    "GetStatus": gen.GenerationServiceGetStatusRequest(),
    "UpdateWeights": gen.UpdateWeightsRequest(),
}


class Generation(gen_grpc.GenerationServiceServicer):
    """Answers at once; `hold` keeps streams open."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:  # noqa: N802
        return gen.GenerateResponse()

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[gen.GenerateStreamResponse]:  # noqa: N802
        yield gen.GenerateStreamResponse()
        await self.hold.wait()

    async def GetStatus(self, request: Any, context: Any) -> gen.GenerationServiceGetStatusResponse:  # noqa: N802
        return gen.GenerationServiceGetStatusResponse(version=7)

    async def UpdateWeights(self, request: Any, context: Any) -> gen.UpdateWeightsResponse:  # noqa: N802
        return gen.UpdateWeightsResponse()


class Reward(rew_grpc.RewardServiceServicer):
    async def Score(self, request: Any, context: Any) -> rew.ScoreResponse:  # noqa: N802
        return rew.ScoreResponse()

    async def ListVerifiers(self, request: Any, context: Any) -> rew.ListVerifiersResponse:  # noqa: N802
        return rew.ListVerifiersResponse()


@asynccontextmanager
async def serving(
    access: AccessSettings | None = None, limits: ServerSettings | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[str, Server]]:
    """The address of a server with both services."""
    server, generation = Server(access, limits), Generation()
    gen_grpc.add_GenerationServiceServicer_to_server(generation, server.grpc)
    rew_grpc.add_RewardServiceServicer_to_server(Reward(), server.grpc)
    port = await server.listen(host, 0, ["routershift.v1.GenerationService", "routershift.v1.RewardService"])
    await server.serving()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        generation.hold.set()
        await server.stop(0)


def showing(tmp_path: Path, token: str) -> AccessSettings:
    file = tmp_path / f"token-{token[0]}"
    file.write_text(f"{token}\n")
    return AccessSettings(token=file)


def locked(authority: Authority, name: str = "server", **more: Any) -> AccessSettings:
    certificate, key = authority.sign(name)
    return AccessSettings(certificate=certificate, key=key, authority=authority.certificate, **more)


async def code_of(
    address: str, access: AccessSettings | None = None, method: str = "Generate", **call: Any
) -> grpc.StatusCode:
    """What a generation method answers, asked once by a connection of its own."""
    alone = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with open_channel(address, access, alone) as channel:
        asked = getattr(gen_grpc.GenerationServiceStub(channel), method)(REQUESTS[method], timeout=10, **call)
        try:
            await (asked.read() if method == "GenerateStream" else asked)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return CODE.OK


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
