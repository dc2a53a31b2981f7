"""The samples that a run kept: prompts, responses, rewards, and where the routers moved."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.cli.arguments import add_run
from services.cli.folders import run_folder
from services.cli.rollouts.select import Wanted, select
from services.cli.rollouts.show import Scale, lines, write
from services.learner.settings import RouterShiftSettings
from shared.errors import CorruptDataError, NotFoundError
from shared.process.exits import EXIT_OK
from shared.tracking import records
from shared.tracking import settings as recorded
from shared.tracking.sample import Sample, Summary
from shared.tracking.samples import Samples

_COUNT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--step", type=int, metavar="N", help="of this step; default: the newest that was trained on")
    which = parser.add_mutually_exclusive_group()
    for order, text in (
        ("worst", "lowest rewards first, of all steps unless --step is given"),
        ("best", "highest rewards first, likewise"),
        ("failed", "those that were not trained on, with the reason, newest first, likewise"),
    ):
        which.add_argument(f"--{order}", dest="order", action="store_const", const=order, help=text)
    parser.add_argument("--prompt", metavar="ID", help="of this prompt or problem, likewise")
    parser.add_argument("-n", dest="count", type=int, default=_COUNT, metavar="COUNT", help=f"default: {_COUNT}")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with every number of every token")


def run(arguments: argparse.Namespace) -> int:
    folder = run_folder(arguments.name)
    samples = Samples(folder)
    wanted = Wanted(arguments.count, arguments.step, arguments.order, arguments.prompt)
    chosen = select(samples, wanted)
    if not chosen:
        print("every sample that was kept was trained on", file=sys.stderr)
    shown = _read(samples, chosen)
    if arguments.json:
        for sample in shown:
            print(records.dumps(sample.record()))
    else:
        write(lines(shown, _scale(folder)))
    return EXIT_OK


def _read(samples: Samples, chosen: Sequence[Summary]) -> Iterator[Sample]:
    """One at a time. What is torn, or gone since the index was read, is said and hides nothing else."""
    for summary in chosen:
        try:
            yield samples.read(summary.step, summary.trajectory)
        except (CorruptDataError, NotFoundError) as error:
            print(f"routershift: {error}", file=sys.stderr)


def _scale(folder: Path) -> Scale:
    """As the learner of the run was set, or by default."""
    table = recorded.read(folder).get("learner", {}).get("router_shift", {})
    return Scale(RouterShiftSettings.model_validate(table).gamma_min)
