"""A new run that begins at a checkpoint of another, with other settings."""

import argparse

from services.cli.arguments import add_run, add_settings
from services.cli.folders import run_folder
from services.cli.provenance.fork import fork
from services.cli.provenance.stored import RECIPE
from shared.process.exits import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("id", metavar="NEW_ID", help="run.id of the new run")
    parser.add_argument("--step", type=int, metavar="N", help="step of the checkpoint; default: the newest")
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    folder, step = fork(run_folder(arguments.name), arguments.id, arguments.step, arguments.flags)
    print(f"{folder} begins at step {step}; start it with: routershift run {folder / RECIPE}")
    return EXIT_OK
