"""One service in this process."""

import argparse
import importlib
import os
from functools import partial

from services.cli.arguments import add_log_level, add_recipe, add_settings
from shared.process import service as process
from shared.process.collection import uncollected
from shared.recipes import load
from shared.settings import SERVICES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", choices=SERVICES, help="which service")
    add_recipe(parser)
    add_settings(parser)
    add_log_level(parser)
    # For `run` and `up`, which have written down the whole run before.
    parser.add_argument("--recorded", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    name = arguments.service
    tables = importlib.import_module(f"services.{name}.settings").Settings
    settings = load(tables, arguments.recipe, os.environ, arguments.flags)
    if name == "learner" and int(os.environ.get("RANK", "0")) > 0:  # torchrun's; rank 0 alone is the service
        with uncollected():
            from services.learner.follower import follow

        return follow(settings.learner, settings.run, settings.rollout, settings.payloads, arguments.log_level)
    with uncollected():
        service = getattr(importlib.import_module(f"services.{name}.service"), f"{name.capitalize()}Service")(settings)
    from services.cli.provenance import served  # imports the settings of all services

    begin = None if arguments.recorded else partial(served.add, name, settings, arguments.recipe)
    return process.main(service, settings, getattr(settings, name), arguments.log_level, begin)
