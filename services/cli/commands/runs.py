"""The runs of a folder: state, steps, best accuracy, start, recipe and size on disk."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from services.cli.run_list import Listed, runs
from shared import sizes
from shared.errors import NotFoundError
from shared.process.exits import EXIT_OK
from shared.tracking import records

_HEADINGS = ("RUN", "STATE", "STEPS", "BEST", "STARTED (UTC)", "SIZE", "RECIPE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="parent of runs; default: runs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON array of objects")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.folder.is_dir():
        raise NotFoundError(f"folder {arguments.folder} does not exist; give the run.folder of your recipes")
    found = runs(arguments.folder)
    if arguments.json:
        print(records.dumps([dataclasses.asdict(each) for each in found], indent=2))
    elif found:
        print("\n".join(_table(found)))
    else:
        print(f"no run has its folder in {arguments.folder}")
    return EXIT_OK


def _table(found: Sequence[Listed]) -> list[str]:
    rows = [_HEADINGS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(listed: Listed) -> tuple[str, ...]:
    origin = f"fork of {listed.parent}" if listed.parent else Path(listed.recipe).name if listed.recipe else "-"
    return (
        listed.id,
        listed.state,
        str(listed.steps) if listed.total_steps is None else f"{listed.steps}/{listed.total_steps}",
        "-" if listed.best_accuracy is None else f"{listed.best_accuracy:.3f}",
        listed.started[:16].replace("T", " ") if listed.started else "-",
        sizes.in_words(listed.disk_bytes),
        f"{origin}  ({listed.fault})" if listed.fault else origin,
    )
