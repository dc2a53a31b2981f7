"""Calls over connections that are silent for long, break, are told of a proxy, or lead to an IPv6 address."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from routershift.client import status
from routershift.client.channel import open_channel
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import learner_pb2_grpc as lrn_grpc
from routershift.v1 import reward_pb2_grpc as rew_grpc
from services.learner.server import LearnerServicer
from services.reward.early import EarlyScores
from services.reward.server import RewardServicer
from shared.clients import GenerationClient, LearnerClient, RewardClient
from shared.errors import InvalidInputError, PreconditionError, UnavailableError
from shared.process.service import start_metrics
from shared.rpc import guard as guard_module
from shared.rpc.address import check_port, held_port, join, local
from shared.rpc.server import Server, begin
from shared.settings import ServerSettings
from tests.support.access import Generation
from tests.support.relay import Relay, relay

HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()


class Working(Generation):
    """Works on each call until it is told to end, and counts how often work began."""

    def __init__(self) -> None:
        super().__init__()
        self.began = asyncio.Semaphore(0)
        self.calls = 0
        self.answer = gen.GenerateResponse(prompt_tokens=1)

    async def Generate(self, request: gen.GenerateRequest, context: Any) -> gen.GenerateResponse:  # noqa: N802
        self.calls += 1
        await begin(context)
        self.began.release()
        await self.hold.wait()
        return self.answer

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[gen.GenerateStreamResponse]:  # noqa: N802
        self.calls += 1
        await begin(context)
        self.began.release()
        await self.hold.wait()
        for completion in self.answer.completions:
            yield gen.GenerateStreamResponse(delta=completion)


@contextlib.asynccontextmanager
async def working(
    host: str = "127.0.0.1", settings: ServerSettings | None = None
) -> AsyncIterator[tuple[str, Working]]:
    server, servicer = Server(settings=settings), Working()
    gen_grpc.add_GenerationServiceServicer_to_server(servicer, server.grpc)
    port = await server.listen(host, 0, [])
    try:
        yield join(local(host), port), servicer
    finally:
        servicer.hold.set()
        await server.stop(0)


async def drained(client: GenerationClient) -> list[Any]:
    return [piece async for piece in client.stream("?")]


CALLS: dict[str, Callable[[GenerationClient], Awaitable[Any]]] = {
    "unary": lambda client: client.generate("?"),
    "stream": drained,
}
each_kind = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_kind
async def test_a_call_may_be_silent_for_many_pings(
    call: Callable[[GenerationClient], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "KEEPALIVE_SECONDS", 0.2)
    async with working() as (address, servicer), GenerationClient(address, 60) as client:
        waiting = asyncio.ensure_future(call(client))
        await servicer.began.acquire()
        await asyncio.wait({waiting}, timeout=4)  # twenty pings
        assert not waiting.done()
        servicer.hold.set()
        await waiting
    assert servicer.calls == 1


async def test_a_server_with_the_floor_of_grpc_ends_such_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `KEEPALIVE_SECONDS` has to be known to both ends."""
    async with working() as (address, servicer):  # allows a ping in 30 s
        monkeypatch.setattr(status, "KEEPALIVE_SECONDS", 0.2)
        async with GenerationClient(address, 60) as client:
            with pytest.raises(UnavailableError, match="Too many pings"):
                await client.generate("?")
    assert servicer.calls == 1


@each_kind
async def test_work_that_began_is_not_begun_again_where_the_connection_breaks(
    call: Callable[[GenerationClient], Awaitable[Any]],
) -> None:
    async with (
        working() as (address, servicer),
        relay(address) as between,
        GenerationClient(between.address, 60) as client,
    ):
        waiting = asyncio.ensure_future(call(client))
        await servicer.began.acquire()
        between.cut()
        with pytest.raises(UnavailableError):
            await waiting
        servicer.hold.set()
        await call(client)  # over a new connection
    assert servicer.calls == 2


async def test_a_call_that_found_no_room_is_sent_again() -> None:
    settings = ServerSettings(max_calls=1)
    async with working(settings=settings) as (address, servicer), GenerationClient(address, 60) as client:
        first = asyncio.ensure_future(client.generate("?"))
        await servicer.began.acquire()
        second = asyncio.ensure_future(client.generate("?"))
        servicer.hold.set()
        await asyncio.gather(first, second)
    assert servicer.calls == 2


@contextlib.asynccontextmanager
async def behind_a_relay(servicer: Any, add: Callable[[Any, grpc.aio.Server], None]) -> AsyncIterator[Relay]:
    server = Server()
    add(servicer, server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    async with relay(f"127.0.0.1:{port}") as between:
        yield between
    await server.stop(0)


class _Slow:
    """A scorer and a learner that never end what they begin."""

    def __init__(self) -> None:
        self.calls = 0
        self.began = asyncio.Event()

    async def score(self, verifier: str, items: Any, *, admitted: Callable[[], Awaitable[None]]) -> list[Any]:
        self.calls += 1
        await admitted()
        await self.pause()
        return []

    async def pause(self) -> Any:
        self.began.set()
        await asyncio.sleep(3600)

    async def checkpoint_now(self) -> Any:
        self.calls += 1
        await self.pause()


async def test_scoring_and_checkpoints_are_not_begun_again_either() -> None:
    slow: Any = _Slow()
    servicer = RewardServicer(slow, EarlyScores(slow, 100))
    async with (
        behind_a_relay(servicer, rew_grpc.add_RewardServiceServicer_to_server) as between,
        RewardClient(between.address, 60) as reward,
    ):
        waiting = asyncio.ensure_future(reward.score("exact", "", ["?"], {}))
        await slow.began.wait()
        between.cut()
        with pytest.raises(UnavailableError):
            await waiting
    assert slow.calls == 1
    slow, learner = _Slow(), LearnerServicer()
    learner.open(slow)
    async with (
        behind_a_relay(learner, lrn_grpc.add_LearnerServiceServicer_to_server) as between,
        LearnerClient(between.address, 60) as client,
    ):
        checkpoint = asyncio.ensure_future(client.checkpoint())
        await slow.began.wait()
        between.cut()
        with pytest.raises(UnavailableError):
            await checkpoint
    assert slow.calls == 1


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"])
async def test_no_call_goes_through_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_port("127.0.0.1", "port") as nobody:
        monkeypatch.setenv(name, f"http://127.0.0.1:{nobody}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with working() as (address, servicer), GenerationClient(address, 20) as client:
            servicer.hold.set()
            await client.generate("?")


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::", "[::1]", "[::]", "localhost", "0.0.0.0"])  # noqa: S104
async def test_addresses_of_both_families_are_bound_and_called(host: str) -> None:
    settings = ServerSettings(host=host, health_port=0)
    assert "[" not in settings.host
    check_port(settings.host, 0, "port")
    async with working(settings.host, settings) as (address, servicer), GenerationClient(address, 20) as client:
        servicer.hold.set()
        await client.generate("?")
    with held_port(settings.host, "metrics_port") as port:
        pass
    start_metrics(settings.model_copy(update={"metrics_port": port}), "one")
    reader, writer = await asyncio.open_connection(local(settings.host), port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b"routershift_" in await reader.read()
    writer.close()


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "localhost"])
async def test_a_taken_port_is_noticed_in_both_families(host: str) -> None:
    async with working(host) as (address, _):
        port = int(address.rpartition(":")[2])
        with pytest.raises(
            PreconditionError, match=rf"learner\.port = {port} on {host} cannot be bound \(address alrea"
        ):
            check_port(host, port, "learner.port")


@pytest.mark.parametrize("host", ["2001:db8::1", "192.0.2.1", "no.such.host.invalid", "a b"])
def test_an_address_of_another_machine_is_refused_with_what_to_set(host: str) -> None:
    with pytest.raises(
        PreconditionError, match=r"port = 0 on .* cannot be bound \(.+\); set host to an address of this"
    ):
        check_port(host, 0, "port")


@each_kind
async def test_an_answer_too_large_for_a_message_is_computed_once(
    call: Callable[[GenerationClient], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "MAX_MESSAGE_BYTES", 1 << 10)
    async with working() as (address, servicer), GenerationClient(address, 20) as client:
        servicer.answer.completions.add(text="x" * 2000)
        servicer.hold.set()
        with pytest.raises(InvalidInputError, match=r"the answer is 20\d\d bytes long; allowed: 1024 in one message"):
            await call(client)
    assert servicer.calls == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (2000, r"request is 20\d\d bytes long; allowed: max_request_bytes = 1024"),
        (600 << 10, r"request is 614\d\d\d bytes long; allowed: max_request_bytes = 1024"),
        (4 << 20, r"larger than max \(4194\d\d\d vs\. 1050624\) bytes; send or ask for less"),
    ],
)
async def test_a_request_too_large_is_refused_once_with_its_size_and_the_limit(size: int, text: str) -> None:
    settings = ServerSettings(max_request_bytes=1 << 10)
    async with working(settings=settings) as (address, servicer), GenerationClient(address, 20) as client:
        servicer.hold.set()
        for ask in (client.generate("x" * size), anext(client.stream("x" * size))):
            with pytest.raises(InvalidInputError, match=text):
                await ask
    assert servicer.calls == 0


async def test_any_client_is_told_that_its_message_is_too_large() -> None:
    settings = ServerSettings(max_request_bytes=128 << 20)
    async with working(settings=settings) as (address, _), open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="allowed: max_request_bytes = 134217728") as caught:
            await gen_grpc.GenerationServiceStub(channel).Generate(
                gen.GenerateRequest(text="x" * (130 << 20)), timeout=60
            )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
