"""A Redis of a test's own, that can be killed and comes back with what it had acknowledged."""

import subprocess
import time
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.cli.local.redis import find_server


class Server:
    """Runs from the beginning of the block, with its append-only file, if it has one, in `data`."""

    def __init__(self, data: Path, socket: Path, appendonly: bool = True) -> None:
        self.url = f"unix://{socket}?db=0"
        self._command = [
            find_server(), "--port", "0", "--unixsocket", str(socket), "--dir", str(data), "--save", "",
            "--appendonly", "yes" if appendonly else "no", "--appendfsync", "always",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)

    def __enter__(self) -> "Server":
        self.start()
        with Redis.from_url(self.url) as client:
            for _ in range(200):
                try:
                    client.ping()
                    return self
                except RedisConnectionError:
                    time.sleep(0.05)
        raise TimeoutError("redis-server did not start")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
