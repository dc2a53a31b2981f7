"""Where a run stands: its progress, streams and ledger."""

import argparse
import asyncio
import sys

from services.cli.arguments import add_run
from services.cli.attached import attached
from services.cli.live.look import Look, look
from services.cli.live.watch import watch
from services.cli.live.words import rows, text
from services.cli.signals import interruptible
from shared.errors import InvalidInputError
from shared.process.exits import EXIT_INTERRUPTED, EXIT_OK
from shared.tracking import records

_LEAST_SECONDS, _MOST_SECONDS = 0.1, 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for machines: one JSON object")
    how.add_argument("--watch", action="store_true", help="again and again, until the run has ended or Ctrl-C")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks of --watch; default: 2"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ctrl-C is the regular end of --watch: then it gives EXIT_OK."""
    if not _LEAST_SECONDS <= arguments.every <= _MOST_SECONDS:
        raise InvalidInputError(
            f"--every is {arguments.every:g}; expected {_LEAST_SECONDS:g} to {_MOST_SECONDS:g} seconds"
        )
    if arguments.watch:
        code = interruptible(watch(arguments.name, arguments.every), quiet=True)
        return EXIT_OK if code == EXIT_INTERRUPTED else code
    now = asyncio.run(status(arguments.name))
    sys.stdout.write(f"{records.dumps(now.as_record(), indent=2)}\n" if arguments.json else text(rows(now)))
    return EXIT_OK


async def status(name: str) -> Look:
    """One look at a run; of one that has ended, at what it left.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.

    Raises:
        NotFoundError: no such run.
        PreconditionError: the run used a Redis of its own, and REDIS_URL is not set.
        UnavailableError: its Redis does not answer and left nothing.
    """
    async with attached(name) as found:
        return await look(found)
