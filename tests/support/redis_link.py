"""A Unix socket before Redis that can lose an answer on its way back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from shared.settings import StreamSettings
from shared.streams.connection import Client
from shared.streams.functions import FLAGS, source
from shared.streams.run import Run


class Link:
    """Passes bytes on, both ways."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._losing: bytes | None = None
        self.lost = 0

    def lose_answer_to(self, command: bytes) -> None:
        """The next command that contains these bytes is carried out; its answer and its connection are lost."""
        self._losing = command

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, commands = await asyncio.open_unix_connection(self._upstream)
        cut = asyncio.Event()

        async def back() -> None:
            while data := await answers.read(1 << 16):
                if cut.is_set():
                    self.lost += 1
                    return
                writer.write(data)

        returning = asyncio.create_task(back())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self._losing is not None and self._losing in data:
                    self._losing = None
                    cut.set()
                commands.write(data)
                if cut.is_set():
                    await returning
                    break
        returning.cancel()
        commands.close()
        writer.close()


@contextlib.asynccontextmanager
async def link(url: str, folder: Path) -> AsyncIterator[tuple[str, Link]]:
    """The URL of a way to that Redis, and what it can do to it."""
    between = Link(urlsplit(url).path)
    path = folder / "link.sock"
    server = await asyncio.start_unix_server(between.connect, path)
    try:
        yield f"unix://{path}?db=0", between
    finally:
        server.close()


async def provide(client: Client) -> bytes:
    """Gives the server all scripts, so that none is missed; which command calls them, as a link sees it."""
    await Run(client, "provided", StreamSettings()).ledger()
    if client.has_functions:
        return b"FCALL"
    for name in FLAGS:
        await client.script_load(source(name, fenced=False))
    return b"EVALSHA"
