"""Whether every trajectory of a run is accounted for, and none was trained on twice."""

import argparse
import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from services.cli.arguments import add_run
from services.cli.attached import attached
from services.learner.checkpointing.checkpoint import trained_groups
from shared.payloads.registry import folder_of, make_store
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import PayloadStore
from shared.process.exits import EXIT_FAILURE, EXIT_OK
from shared.streams import audit as streams
from shared.streams.connection import server_release
from shared.tracking import records
from shared.tracking import settings as recorded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    """EXIT_FAILURE where something is wrong; the problems are in what it prints."""
    found = asyncio.run(audit(arguments.name))
    print(records.dumps(found, indent=2))
    return EXIT_OK if found["ok"] else EXIT_FAILURE


async def audit(name: str) -> dict[str, Any]:
    """What the run's Redis and its checkpoints say, running or ended; `ok` where they hold together.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id; where its folder is not on this
            machine, without the checkpoints.

    Raises:
        NotFoundError: no such run.
        UnavailableError: its Redis does not answer and left nothing.
    """
    async with attached(name) as at:
        checkpoints = at.folder / records.CHECKPOINTS if at.folder else None
        if checkpoints is not None and not checkpoints.is_dir():
            checkpoints = None
        trained = partial(trained_groups, checkpoints) if checkpoints else None
        found = await streams.audit(at.redis, at.run, trained, _store(at.folder) if at.folder else None)
        holders = await at.run.holders()
        release = await server_release(at.redis)
    ledger = found.ledger
    return {
        "run": at.run.keys.run,
        "ok": not found.problems,
        "live": at.live,
        "server": str(release),
        "server_warning": release.warning,
        "checkpoints": str(checkpoints) if checkpoints else None,
        "ledger": {
            "prompted": ledger.prompted,
            "trained": ledger.trained,
            "dropped": dict(ledger.dropped),
            "dead": dict(ledger.dead),
            "in_flight": dict(ledger.stages),
            "balanced": ledger.balanced,
        },
        "groups": dict(found.groups),
        "holders": holders,
        "problems": found.problems,
    }


def _store(folder: Path) -> PayloadStore | None:
    """The payload store of the run's last start; None where it has none, or a folder that is not on this machine."""
    table = recorded.read(folder).get("payloads")
    settings = PayloadSettings.model_validate(table or {})
    if settings.store == "folder" and not folder_of(settings, folder).is_dir():
        return None
    return make_store(settings, folder)
