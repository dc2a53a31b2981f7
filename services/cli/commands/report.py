"""A page of what a run did, report.html in its folder; of several runs, one that compares them."""

import argparse
from pathlib import Path

from services.cli.folders import run_folder
from services.cli.pages import report
from shared.process.exits import EXIT_OK

COMPARISON = Path("comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="RUN", help="folder or id of a run; several are compared")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"default: {report.PAGE} in the run's folder, {COMPARISON} of several",
    )


def run(arguments: argparse.Namespace) -> int:
    folders = list(dict.fromkeys(run_folder(name) for name in arguments.names))
    if arguments.output is None and len(folders) == 1:
        path = report.write(folders[0])
    else:
        path = arguments.output or COMPARISON
        path.write_text(report.report(folders), encoding="utf-8")
    print(path)
    return EXIT_OK
