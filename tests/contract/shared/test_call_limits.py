"""Limits on calls: their size, how many at once, and how many in a second."""

import asyncio
from pathlib import Path

import grpc
import pytest

from routershift.client.channel import open_channel
from routershift.client.status import raise_typed
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from shared.errors import OverloadedError
from shared.settings import AccessSettings, ServerSettings
from tests.support.access import CODE, SAMPLER, SCORER, STRANGER, bearer, code_of, serving


async def test_more_calls_at_once_than_the_limit_are_refused_and_told_when_to_come_back() -> None:
    async with serving(limits=ServerSettings(max_calls=2)) as (address, _), open_channel(address) as channel:
        stub = gen_grpc.GenerationServiceStub(channel)
        streams = [stub.GenerateStream(gen.GenerateStreamRequest(), timeout=30) for _ in range(2)]
        for stream in streams:
            await stream.read()
        assert await code_of(address) is CODE.RESOURCE_EXHAUSTED
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(10):
            while await code_of(address) is not CODE.OK:  # noqa: ASYNC110  # the server's side of a cancellation
                await asyncio.sleep(0.02)


async def test_the_rate_is_each_callers_own(tokens: Path, tmp_path: Path) -> None:
    limits = ServerSettings(calls_per_second=1e-3)  # one call, and the next in a quarter of an hour
    async with serving(AccessSettings(tokens=tokens), limits) as (address, _):
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.OK
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.RESOURCE_EXHAUSTED
        assert await code_of(address, metadata=bearer(SCORER)) is CODE.OK
        assert await code_of(address, metadata=bearer(STRANGER)) is CODE.UNAUTHENTICATED
        alone = [("grpc.enable_retries", 0)]
        async with open_channel(address, None, alone) as channel:
            call = gen_grpc.GenerationServiceStub(channel).Generate(
                gen.GenerateRequest(text="?"), timeout=10, metadata=bearer(SAMPLER)
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
    with pytest.raises(OverloadedError, match=r"calls_per_second = 0\.001") as typed:
        raise_typed(caught.value, "Generate")
    assert 900 < typed.value.retry_after <= 1000
