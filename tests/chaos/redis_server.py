"""A Redis with an append-only file that can be killed, started again and given another clock."""

import asyncio
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.cli.local.redis import find_server
from tests.support.torchrun import free_port

_START_SECONDS = 30.0
MAX_MEMORY = 1 << 30


class RedisServer:
    """On a TCP port of its own, which it keeps.

    Args:
        folder: where its append-only file lies.
        appendfsync: `always` or `everysec`.
        environment: of the server process.
    """

    def __init__(self, folder: Path, appendfsync: str, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.client = Redis(port=self.port)
        self._folder = folder
        self._appendfsync = appendfsync
        self._environment = dict(environment)

    async def start(self) -> None:
        """Returns when it has loaded what it had. Raises AssertionError where it ends or takes too long."""
        self._folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--dir": str(self._folder),
            "--logfile": str(self._folder / "redis.log"),
            "--appendonly": "yes",
            "--appendfsync": self._appendfsync,
            "--save": "",
            "--maxmemory": str(MAX_MEMORY),
            "--maxmemory-policy": "noeviction",
            "--latency-monitor-threshold": "1000",
        }
        command = [find_server(), *(part for pair in arguments.items() for part in pair)]
        self.process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        deadline = time.monotonic() + _START_SECONDS
        while True:
            assert self.process.poll() is None, f"redis-server ended: see {self._folder / 'redis.log'}"
            assert time.monotonic() < deadline, f"redis-server did not start: see {self._folder / 'redis.log'}"
            try:
                await self.client.ping()
                return
            except RedisError:
                await asyncio.sleep(0.02)

    def append_only_file(self) -> Path:
        """The one that it writes to."""
        return max(self._folder.rglob("*.aof"), key=lambda path: path.stat().st_mtime_ns)

    async def stalls(self) -> str:
        """Where it has stood still for more than a second: as when its disk is slow."""
        latest: Any = await self.client.execute_command("LATENCY LATEST")  # type: ignore[no-untyped-call]
        return "; ".join(f"{event.decode()} up to {longest} ms" for event, _, _, longest in latest)

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        await self.client.connection_pool.disconnect()

    async def close(self) -> None:
        await self.kill()
        await self.client.aclose()
