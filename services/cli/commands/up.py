"""All services on this machine, until Ctrl-C."""

import argparse
import sys

from services.cli.arguments import add_log_level, add_recipe, add_settings
from services.cli.local.services import services
from services.cli.signals import interruptible
from shared.process.exits import EXIT_INTERRUPTED, EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_settings(parser)
    add_log_level(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ctrl-C and SIGTERM are its regular end: then it gives EXIT_OK."""

    async def until_interrupted() -> None:
        async with services(arguments.recipe, arguments.flags, arguments.log_level, "up") as running:
            for service in running.recipe.services:
                sys.stderr.write(f"{service:<12} {running.address(service)}\n")
            sys.stderr.write(f"run {running.recipe.run.id} in {running.recipe.run.path}; Ctrl-C stops\n")
            raise await running.ended()

    code = interruptible(until_interrupted())
    return EXIT_OK if code == EXIT_INTERRUPTED else code
