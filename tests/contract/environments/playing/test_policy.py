"""Generation as episodes ask it, over a real connection: full, started again, and refusing.

The server is a double, because a real engine is neither full nor gone on demand.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from routershift import wire
from routershift.trajectory import Completion, FinishReason, VersionSpan
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from services.environments.playing.policy import Policy
from shared.clients import GenerationClient
from shared.errors import InvalidInputError, OverloadedError, UnavailableError
from shared.rpc.server import Server, begin
from tests.support.relay import relay

COMPLETION = Completion(
    index=0,
    token_ids=np.array([3, 4], np.int32),
    logprobs=np.array([-1, -2], np.float32),
    versions=(VersionSpan(1, 2),),
    finish_reason=FinishReason.STOP,
    router_trace=None,
)


class Generation(gen_grpc.GenerationServiceServicer):
    """Raises what it is told to, once its work has begun, and answers then."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.asked = 0
        self.waits: asyncio.Event | None = None  # until then the first that asks has no answer

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:  # noqa: N802
        self.asked += 1
        await begin(context)  # so that gRPC itself does not send the call again
        if self.waits is not None and self.asked == 1:
            await self.waits.wait()
        if self.errors:
            raise self.errors.pop(0)
        return gen.GenerateResponse(completions=[wire.encode_completion(COMPLETION)])

    async def GetStatus(self, request: Any, context: Any) -> gen.GenerationServiceGetStatusResponse:  # noqa: N802
        if self.errors:
            raise self.errors.pop(0)
        return gen.GenerationServiceGetStatusResponse(version=7)

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[gen.GenerateStreamResponse]:  # noqa: N802
        raise NotImplementedError
        yield

    async def UpdateWeights(self, request: Any, context: Any) -> gen.UpdateWeightsResponse:  # noqa: N802
        raise NotImplementedError


@asynccontextmanager
async def serving(generation: Generation) -> AsyncIterator[str]:
    """Gives its address."""
    server = Server()
    gen_grpc.add_GenerationServiceServicer_to_server(generation, server.grpc)
    yield f"127.0.0.1:{await server.listen('127.0.0.1', 0, ['routershift.v1.GenerationService'])}"
    await server.stop(0)


@asynccontextmanager
async def policy(*errors: Exception, seconds: float = 60.0) -> AsyncIterator[tuple[Policy, Generation]]:
    generation = Generation()
    generation.errors = list(errors)
    async with serving(generation) as address, GenerationClient(address, 60) as client:
        yield Policy(client, seconds), generation


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.environments.playing.policy._PAUSE_SECONDS", 0.01)


async def test_a_turn_waits_for_room_and_through_a_restart() -> None:
    full, gone = OverloadedError("full", retry_after=0.01), UnavailableError("gone")
    async with policy(full, full, gone, full, gone) as (played, generation):
        (completion,) = await played.generate([1, 2], max_tokens=8)
    assert completion.token_ids.tolist() == [3, 4]
    assert generation.asked == 6


async def test_a_turn_whose_connection_is_cut_is_sampled_again() -> None:
    generation = Generation()
    generation.waits = asyncio.Event()
    async with (
        serving(generation) as address,
        relay(address) as between,
        GenerationClient(between.address, 60) as client,
    ):
        turn = asyncio.create_task(Policy(client, 60).generate([1, 2], max_tokens=8))
        async with asyncio.timeout(20):
            while not generation.asked:  # noqa: ASYNC110  # another process's state has no event
                await asyncio.sleep(0.01)
            between.cut()
            (completion,) = await turn
    assert completion.token_ids.tolist() == [3, 4]
    assert generation.asked == 2


async def test_a_generation_that_stays_away_is_said_at_last() -> None:
    async with policy(*[UnavailableError("gone")] * 1000, seconds=0.05) as (played, generation):
        with pytest.raises(UnavailableError, match="gone"):
            await played.generate([1, 2])
        assert generation.asked > 1


async def test_what_is_refused_is_not_asked_for_again() -> None:
    async with policy(InvalidInputError("prompt is too long")) as (played, generation):
        with pytest.raises(InvalidInputError, match="prompt is too long"):
            await played.generate([1, 2])
        assert generation.asked == 1


async def test_the_status_comes_as_soon_as_something_serves() -> None:
    async with policy(UnavailableError("still loading")) as (played, _):
        assert (await played.status()).version == 7


async def test_a_generation_that_ends_is_told_from_one_that_is_full() -> None:
    async with policy(OverloadedError("full")) as (asks, _):
        looking = asyncio.create_task(asks.away())
        done, _ = await asyncio.wait({looking}, timeout=2.0)
        assert not done
        looking.cancel()
    async with policy(*[UnavailableError("draining")] * 1000) as (asks, _):
        await asyncio.wait_for(asks.away(), 60)
    async with GenerationClient("127.0.0.1:1", 3600.0) as nobody:
        await asyncio.wait_for(Policy(nobody, 3600.0).away(), 60)
