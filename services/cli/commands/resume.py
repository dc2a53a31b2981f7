"""Lets a paused run go on."""

import argparse
import asyncio

from services.cli.arguments import add_run, add_settings
from services.cli.steering import learner_of
from shared.process.exits import EXIT_OK

_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    async def resume() -> int:
        async with learner_of(arguments.name, arguments.flags, _SECONDS) as learner:
            return await learner.resume()

    print(f"goes on after step {asyncio.run(resume())}")
    return EXIT_OK
