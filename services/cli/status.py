"""`routershift status`: where a run stands, from Redis alone."""

import json
import os
from pathlib import Path
from typing import Any

from services.cli.recipe import run_folder
from services.cli.up import ENDPOINTS
from shared.errors import NotFoundError, PreconditionError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.run import Run


async def status(name: str) -> dict[str, Any]:
    """Progress, ledger and streams of a run.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.

    Raises:
        NotFoundError: no such run.
        UnavailableError: its Redis does not answer, as when the run has ended.
    """
    url = os.environ.get("REDIS_URL")
    run_id = name
    if url is None:
        endpoints = run_folder(name) / ENDPOINTS
        if not endpoints.is_file():
            raise NotFoundError(f"{endpoints} does not exist; was the run started by `routershift up` or `run`?")
        written = json.loads(endpoints.read_text(encoding="utf-8"))
        run_id, url = written["run"], written["redis"]
        if url == "REDIS_URL":
            raise PreconditionError(f"run {run_id} used a Redis of its own; set REDIS_URL to it")
    redis = await connect(RedisSettings(url=url, connect_seconds=2.0))
    try:
        run = Run(redis, Path(run_id).name, StreamSettings())
        progress, ledger = await run.progress(), await run.ledger()
        if not progress and not ledger.prompted:
            raise NotFoundError(f"run {run_id!r} is not in this Redis; check its id")
        return {
            "run": run_id,
            **progress,
            "tickets_held": await run.tickets_held(),
            "streams": {s: {"entries": b.entries, "bytes": b.bytes} for s, b in (await run.backlog()).items()},
            "dead_letters": await run.dead_letters(),
            "ledger": {
                "prompted": ledger.prompted,
                "trained": ledger.trained,
                "dropped": dict(ledger.dropped),
                "dead": dict(ledger.dead),
                "in_flight": ledger.in_flight,
                "balanced": ledger.balanced,
            },
        }
    finally:
        await redis.aclose()
