"""A TCP proxy before Redis that makes the network's faults, for one client process or for all."""

import asyncio
import contextlib
import functools
import socket
import struct
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Self

_CHUNK = 1 << 16
_DELAY_SECONDS = 2.0
_RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends RST


class Network(StrEnum):
    """What the network between a client and Redis does."""

    CUT = "cut"  # connections are reset, new ones too
    HALF_OPEN = "half_open"  # connections are accepted, and nothing that is sent arrives
    DELAY = "delay"  # every answer comes 2 s late
    MUTE = "mute"  # every command arrives, and its connection is reset in place of the answer


class _Connection:
    def __init__(self, client: asyncio.StreamWriter, owner: Callable[[int], str | None]) -> None:
        self.client = client
        self._owner = owner
        self.upstream: asyncio.StreamWriter | None = None
        self.swallowed = False  # bytes are missing: it can never be used again

    @functools.cached_property
    def owner(self) -> str | None:
        """Looked up when it matters: that takes some milliseconds, which nobody else is served in."""
        return self._owner(self.client.get_extra_info("peername")[1])

    def abort(self) -> None:
        for writer in (self.client, self.upstream):
            if writer is not None and not writer.transport.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()


class Proxy:
    """Forwards to `127.0.0.1:upstream`; `port` is where it listens.

    Args:
        owner: gives the name of the client that has this local TCP port; None for one that has no name.
    """

    def __init__(self, upstream: int, owner: Callable[[int], str | None]) -> None:
        self._upstream = upstream
        self._owner = owner
        self._faults: dict[str | None, Network] = {}
        self._connections: set[_Connection] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def begin(self, fault: Network, owner: str | None = None) -> None:
        """From now on, for connections of this owner, or, with None, for all."""
        self._faults[owner] = fault
        if fault is Network.CUT:
            for connection in list(self._connections):
                if self._fault(connection) is Network.CUT:
                    connection.abort()

    def end(self, owner: str | None = None) -> None:
        """The network works again. A connection that has lost bytes is reset, as its other end would."""
        self._faults.pop(owner, None)
        for connection in list(self._connections):
            if connection.swallowed and self._fault(connection) is None:
                connection.abort()

    def _fault(self, connection: _Connection) -> Network | None:
        if not self._faults or None in self._faults:
            return self._faults.get(None)
        return self._faults.get(connection.owner)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, self._owner)
        self._connections.add(connection)
        try:
            await self._forward(connection, reader)
        except OSError:
            pass  # one of the ends is gone, and so is the connection
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _forward(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        if self._fault(connection) is Network.CUT:
            return
        answers, connection.upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
        commands = asyncio.create_task(self._send_commands(connection, reader, connection.upstream))
        replies = asyncio.create_task(self._send_answers(connection, answers))
        _, pending = await asyncio.wait({commands, replies}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(commands, replies, return_exceptions=True)

    async def _send_commands(
        self, connection: _Connection, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_CHUNK):
            if self._fault(connection) is Network.HALF_OPEN:
                connection.swallowed = True
            if not connection.swallowed:
                upstream.write(data)
                await upstream.drain()

    async def _send_answers(self, connection: _Connection, answers: asyncio.StreamReader) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                connection.client.write(data)
                await connection.client.drain()

        delivering = asyncio.create_task(deliver())
        try:
            while data := await answers.read(_CHUNK):
                fault = self._fault(connection)
                if fault is Network.MUTE:
                    return
                if fault is Network.HALF_OPEN:
                    connection.swallowed = True
                if not connection.swallowed:
                    late = _DELAY_SECONDS if fault is Network.DELAY else 0.0
                    waiting.put_nowait((time.monotonic() + late, data))
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering
