"""A run's Redis, for the commands that look into one: the running one, or what the run left on disk."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from services.cli.endpoints import REDIS_URL, Endpoints
from services.cli.folders import run_folder
from services.cli.local.redis import local_redis
from services.cli.settings import SupervisorSettings
from shared.errors import NotFoundError, PreconditionError, UnavailableError
from shared.recipes import redis_of
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.progress import Progress
from shared.streams.run import Run

_CONNECT_SECONDS = 2.0
_SOCKET_SECONDS = 0.5  # on this machine it answers at once, or is not there


@dataclass(frozen=True, slots=True)
class Attached:
    redis: Redis
    run: Run
    folder: Path | None  # None where only its Redis is known
    live: bool  # False: a copy of what the run left, so that a change would be lost


@contextlib.asynccontextmanager
async def attached(name: str) -> AsyncIterator[Attached]:
    """The run's data, while the block lasts.

    Where the Redis of `routershift up` or `run` has ended with it, its append-only file is copied and a server of our
    own started on the copy.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.

    Raises:
        NotFoundError: no such run.
        PreconditionError: the run used a Redis of its own, and REDIS_URL is not set.
        UnavailableError: its Redis does not answer and left nothing.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder: Path | None = None
        live = True
        if os.environ.get("REDIS_URL"):
            with contextlib.suppress(NotFoundError):
                folder = run_folder(name)
            run_id = Path(name).name
            redis = await connect(redis_of(os.environ, connect_seconds=_CONNECT_SECONDS))
        else:
            folder = run_folder(name)
            endpoints = Endpoints.read(folder)
            run_id, url = endpoints.run, endpoints.redis
            if url == REDIS_URL:
                raise PreconditionError(f"run {run_id} used a Redis of its own; set REDIS_URL to it")
            try:
                redis = await connect(RedisSettings(url=url, connect_seconds=_SOCKET_SECONDS))
            except UnavailableError:
                left = folder / "redis"
                if not left.is_dir():
                    raise
                live = False
                copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routershift-"))) / "redis"
                shutil.copytree(left, copy, ignore=shutil.ignore_patterns("*.log"))
                url, _ = await stack.enter_async_context(local_redis(copy, SupervisorSettings()))
                redis = await connect(RedisSettings(url=url))
        stack.push_async_callback(redis.aclose)
        run = Run(redis, run_id, StreamSettings())
        if await run.progress() == Progress() and not (await run.ledger()).prompted:
            raise NotFoundError(f"run {run_id!r} is not in this Redis; check its id")
        yield Attached(redis, run, folder, live)
