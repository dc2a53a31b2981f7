"""Where a run stands: its progress, streams and ledger."""

import argparse
import asyncio
from typing import Any

from services.cli.arguments import add_run
from services.cli.attached import attached
from shared.process.exits import EXIT_OK
from shared.tracking import records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    print(records.dumps(asyncio.run(status(arguments.name)), indent=2))
    return EXIT_OK


async def status(name: str) -> dict[str, Any]:
    """Progress, ledger and streams of a run; of one that has ended, what it left.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.

    Raises:
        NotFoundError: no such run.
        PreconditionError: the run used a Redis of its own, and REDIS_URL is not set.
        UnavailableError: its Redis does not answer and left nothing.
    """
    async with attached(name) as found:
        ledger = await found.run.ledger()
        backlog = await found.run.backlog()
        return {
            "run": found.run.keys.run,
            "live": found.live,
            **(await found.run.progress()).as_record(),
            "tickets_held": await found.run.tickets_held(),
            "streams": {s: {"entries": b.entries, "bytes": b.bytes} for s, b in backlog.items()},
            "dead_letters": await found.run.dead_letters(),
            "ledger": {
                "prompted": ledger.prompted,
                "trained": ledger.trained,
                "dropped": dict(ledger.dropped),
                "dead": dict(ledger.dead),
                "in_flight": ledger.in_flight,
                "balanced": ledger.balanced,
            },
        }
