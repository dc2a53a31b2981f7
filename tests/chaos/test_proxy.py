"""The proxy makes the faults that the chaos suite relies on."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import Network, Proxy

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that answers every line with itself, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.heard.append(line)
            writer.write(line)
        writer.close()


@pytest.fixture
def owners() -> dict[int, str]:
    """The owner of each local port."""
    return {}


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo, owners: dict[int, str]) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()[1], owners.get) as proxy:
        yield proxy
    server.close()


async def ask(pair: Pair, text: bytes = b"hello\n", timeout: float = 1.0) -> bytes:
    reader, writer = pair
    writer.write(text)
    return await asyncio.wait_for(reader.readline(), timeout)


async def connect(proxy: Proxy) -> Pair:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def named(proxy: Proxy, owners: dict[int, str], name: str) -> Pair:
    """A connection whose owner has a name; its first answer proves that the proxy knows it."""
    plain = socket.socket()
    plain.bind(("127.0.0.1", 0))
    owners[plain.getsockname()[1]] = name
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", proxy.port))
    pair = await asyncio.open_connection(sock=plain)
    assert await ask(pair) == b"hello\n"
    return pair


async def test_a_cut_resets_connections_old_and_new(proxy: Proxy) -> None:
    old = await connect(proxy)
    assert await ask(old) == b"hello\n"
    proxy.begin(Network.CUT)
    with pytest.raises(ConnectionError):
        await ask(old)
    with pytest.raises(ConnectionError):
        await ask(await connect(proxy))
    proxy.end()
    assert await ask(await connect(proxy)) == b"hello\n"


async def test_a_half_open_connection_swallows_and_is_of_no_use_afterwards(proxy: Proxy, echo: Echo) -> None:
    pair = await connect(proxy)
    assert await ask(pair) == b"hello\n"
    proxy.begin(Network.HALF_OPEN)
    with pytest.raises(TimeoutError):
        await ask(pair, timeout=0.2)
    proxy.end()
    with pytest.raises(ConnectionError):
        await ask(pair)
    assert echo.heard == [b"hello\n"]


async def test_a_mute_network_delivers_the_command_and_loses_the_answer(proxy: Proxy, echo: Echo) -> None:
    pair = await connect(proxy)
    proxy.begin(Network.MUTE)
    with pytest.raises(ConnectionError):
        await ask(pair)
    assert echo.heard == [b"hello\n"]


async def test_a_slow_network_delays_answers_and_keeps_their_order(proxy: Proxy) -> None:
    pair = await connect(proxy)
    assert await ask(pair) == b"hello\n"
    proxy.begin(Network.DELAY)
    began = time.monotonic()
    assert await ask(pair, b"one\n", timeout=5) == b"one\n"
    proxy.end()
    assert time.monotonic() - began >= 2
    assert await ask(pair, b"two\n") == b"two\n"


async def test_a_fault_is_for_its_owner_alone(proxy: Proxy, owners: dict[int, str]) -> None:
    one, other = await named(proxy, owners, "one"), await named(proxy, owners, "other")
    proxy.begin(Network.CUT, "one")
    with pytest.raises(ConnectionError):
        await ask(one)
    assert await ask(other) == b"hello\n"
