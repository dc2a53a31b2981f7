"""A service that ends in the way that it is told to: `python -m tests.support.service_process REDIS_URL FOLDER WAY`."""

import asyncio
import sys
import time
from pathlib import Path
from typing import ClassVar

from pydantic import SecretStr

from shared import errors
from shared.process.service import Service, main
from shared.rpc.server import Server
from shared.settings import BaseSettings, RedisSettings, RunSettings, ServerSettings
from shared.streams.run import Run


class Odd(Service):
    name: ClassVar[str] = "odd"

    def __init__(self, way: str) -> None:
        self._way = way

    def register(self, server: Server) -> list[str]:
        return []

    async def start(self, run: Run) -> None:
        if self._way == "start":
            await asyncio.to_thread(time.sleep, 1000)
        elif self._way == "crash":
            raise RuntimeError("one\ntwo")
        elif hasattr(errors, self._way):
            raise getattr(errors, self._way)("this way")

    async def work(self, stop: asyncio.Event) -> None:
        if self._way == "work":
            time.sleep(1000)  # noqa: ASYNC251  # the wedge
        if self._way != "close":
            await stop.wait()
        if self._way == "drain":
            await asyncio.sleep(1000)

    async def close(self) -> None:
        if self._way == "close":
            await asyncio.sleep(1000)


if __name__ == "__main__":
    url, folder, way = sys.argv[1:]
    settings = BaseSettings(
        run=RunSettings(id="odd", folder=Path(folder), model=Path()), redis=RedisSettings(url=SecretStr(url))
    )
    servers = {
        "start": ServerSettings(start_seconds=1.0),
        "work": ServerSettings(watchdog_seconds=1.0),
        "close": ServerSettings(watchdog_seconds=1.0),
        "drain": ServerSettings(drain_seconds=0.5),
        "stopped": ServerSettings(watchdog_seconds=2.0),
    }
    sys.exit(main(Odd(way), settings, servers.get(way, ServerSettings()), "ERROR"))
