"""Requests that begin and do not end: they take little memory, come to an end, are counted, and keep nobody out."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from prometheus_client import REGISTRY

from shared.settings import ServerSettings
from tests.support.access import CODE, SAMPLER, bearer, code_of, serving
from tests.support.partial_requests import PartialRequests

MIB = 1 << 20
GENERATE = "/routershift.v1.GenerationService/Generate"
PATHS = [GENERATE, "/grpc.health.v1.Health/Check"]
ATTACKERS = 12
LIMITS = ServerSettings(max_request_bytes=16 * MIB, max_receiving=4, receive_seconds=4)
MESSAGE = 32 * MIB  # the longest that gRPC takes; the guard refuses half of that


def counted(reason: str) -> float:
    return REGISTRY.get_sample_value("routershift_calls_refused_total", {"reason": reason}) or 0.0


@asynccontextmanager
async def attacked(tmp_path: Path, limits: ServerSettings) -> AsyncIterator[tuple[psutil.Process, str]]:
    """A server in a process of its own: its process and its address."""
    process = subprocess.Popen(  # noqa: ASYNC220  # a start is no wait
        [sys.executable, "-m", "tests.support.partial_requests", str(tmp_path), limits.model_dump_json()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield psutil.Process(process.pid), (await asyncio.to_thread(process.stdout.readline)).strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


async def attack(address: str, path: str, seconds: float, process: psutil.Process, token: str = "") -> int:
    """Most bytes of memory that it took beyond those before."""
    before = most = process.memory_info().rss
    async with AsyncExitStack() as held:
        clients = [await held.enter_async_context(PartialRequests(address)) for _ in range(ATTACKERS)]
        begun = [asyncio.create_task(client.begin(1, path, MESSAGE, MESSAGE - 1, token)) for client in clients]
        for _ in range(round(seconds / 0.05)):
            await asyncio.sleep(0.05)
            most = max(most, process.memory_info().rss)
        for each in begun:
            each.cancel()
        return most - before


async def test_without_a_token_nothing_of_a_request_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"sample {SAMPLER}\n")
    async with attacked(tmp_path, LIMITS) as (process, address):
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.OK
        assert await attack(address, GENERATE, 1.5, process) < 24 * MIB  # of 384 that they would send
        assert await code_of(address, metadata=bearer(SAMPLER)) is CODE.OK


@pytest.mark.parametrize("path", PATHS)
async def test_where_no_token_is_asked_for_memory_is_bounded_and_others_are_served(tmp_path: Path, path: str) -> None:
    async with attacked(tmp_path, LIMITS) as (process, address):
        assert await code_of(address) is CODE.OK
        attacking = asyncio.create_task(attack(address, path, 2, process))
        await asyncio.sleep(1)
        for _ in range(5):
            assert await code_of(address) is CODE.OK  # while they hold all that they can
        # Of 384 MiB that they would send. What was refused is freed, and the arenas of glibc keep some of it.
        assert await attacking < LIMITS.max_receiving * (2 * LIMITS.max_request_bytes + MIB) + 64 * MIB


async def test_a_request_that_does_not_arrive_in_time_is_ended_and_counted() -> None:
    before = counted("late")
    limits = ServerSettings(receive_seconds=0.6)
    async with serving(limits=limits) as (address, _), PartialRequests(address) as client, asyncio.timeout(20):
        await client.begin(1, GENERATE, 1000, 10)
        while 1 not in client.ended:  # noqa: ASYNC110  # what the server does has no event
            await asyncio.sleep(0.05)
    assert counted("late") == before + 1


async def test_one_connection_cannot_hold_all_places_and_refusals_are_counted() -> None:
    before = counted("overloaded")
    limits = ServerSettings(max_receiving=4, receive_seconds=3)
    async with serving(limits=limits) as (address, _), PartialRequests(address) as client:
        for stream in range(1, 21, 2):
            await client.begin(stream, GENERATE, 1000, 10)
        async with PartialRequests(address) as other:
            await other.begin(1, GENERATE, 1000, 10)
            assert await code_of(address) is CODE.OK
        async with asyncio.timeout(30):
            while len(client.ended) < 10:  # noqa: ASYNC110  # what the server does has no event
                await asyncio.sleep(0.05)
    assert counted("overloaded") > before


async def test_more_connections_than_the_limit_are_refused() -> None:
    async with serving(limits=ServerSettings(max_connections=3)) as (address, _), AsyncExitStack() as held:
        for _ in range(3):
            await held.enter_async_context(PartialRequests(address))
        await asyncio.sleep(0.3)
        fourth = await held.enter_async_context(PartialRequests(address))
        async with asyncio.timeout(10):
            await fourth.closed()
