"""A client that begins requests of gRPC and does not end them, as no library does: HTTP/2 by hand.

`python -m tests.support.partial_requests FOLDER` is the server that it is aimed at.
"""

import asyncio
import contextlib
import struct
import sys
from pathlib import Path
from typing import Self

from shared.settings import AccessSettings, ServerSettings
from tests.support.access import serving

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _WINDOW = 0, 1, 3, 4, 6, 8
_END_HEADERS, _ACK = 4, 1
_PIECE = 16384


class PartialRequests:
    """One connection. Sends as much of a message as the server's windows allow, and keeps the rest."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._windows: dict[int, int] = {0: 65535}
        self._initial = 65535
        self._changed = asyncio.Event()
        self.ended: dict[int, list[bytes]] = {}  # by stream: the headers that ended it, as they came

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def begin(self, stream: int, path: str, length: int, sent: int, token: str = "") -> None:
        """Opens a stream (odd) and sends the first bytes of a message, as far as the server takes them.

        Args:
            length: of the message, as its prefix says.
            sent: bytes of it that are sent.
        """
        headers = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers",
            "content-type": "application/grpc",
        } | ({"authorization": f"Bearer {token}"} if token else {})  # fmt: skip
        block = b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in headers.items())
        self._windows[stream] = self._initial
        self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, block))
        data = memoryview(struct.pack(">BI", 0, length) + bytes(sent))
        while data and stream not in self.ended:
            room = min(self._windows[0], self._windows[stream], _PIECE, len(data))
            if room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._writer.write(_frame(_DATA, 0, stream, bytes(data[:room])))
            await self._writer.drain()
            self._windows[0] -= room
            self._windows[stream] -= room
            data = data[room:]

    async def closed(self) -> None:
        """Returns when the server has ended the connection."""
        await self._reading

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream = int.from_bytes(head[5:], "big")
                body = await self._reader.readexactly(length)
                if kind == _SETTINGS and not flags & _ACK:
                    for i in range(0, length, 6):
                        name, value = struct.unpack(">HI", body[i : i + 6])
                        if name == 4:
                            for each in self._windows:
                                self._windows[each] += (value - self._initial) if each else 0
                            self._initial = value
                    self._writer.write(_frame(_SETTINGS, _ACK, 0, b""))
                elif kind == _PING and not flags & _ACK:
                    self._writer.write(_frame(_PING, _ACK, 0, body))
                elif kind == _WINDOW:
                    self._windows[stream] = self._windows.get(stream, self._initial) + int.from_bytes(body, "big")
                elif kind in (_HEADERS, _RST):
                    self.ended.setdefault(stream, []).append(body)
                self._changed.set()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _literal(text: str) -> bytes:
    """A string of HPACK (RFC 7541, 5.2), shorter than 127 bytes and without Huffman's code."""
    return bytes([len(text)]) + text.encode()


async def _serve(folder: Path, limits: str) -> None:
    tokens = folder / "tokens"
    access = AccessSettings(tokens=tokens if tokens.is_file() else None)
    async with serving(access, ServerSettings.model_validate_json(limits)) as (address, _):
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
