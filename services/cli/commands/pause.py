"""Lets a running run rest after the step in progress, until it is resumed."""

import argparse
import asyncio

from services.cli.arguments import add_run, add_settings
from services.cli.steering import learner_of
from shared.errors import DeadlineError
from shared.process.exits import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--timeout", type=float, default=7200.0, metavar="SECONDS",
        help="how long to wait for the step in progress; the run pauses all the same; default: 7200",
    )  # fmt: skip
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    async def pause() -> int:
        async with learner_of(arguments.name, arguments.flags, arguments.timeout) as learner:
            try:
                return await learner.pause()
            except DeadlineError as error:
                raise DeadlineError(
                    f"the step in progress has not ended after {arguments.timeout:g} s; the run pauses when it has"
                ) from error

    print(f"paused after step {asyncio.run(pause())}; `routershift resume {arguments.name}` goes on")
    return EXIT_OK
