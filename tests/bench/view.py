"""`routershift view` of a run with many samples: seconds from the address to a page that is drawn, in Chromium.

Every turn starts the command anew, so that nothing of the folder is known to it. Beside a run of many samples stands
one with as many steps and a tenth of its samples.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from shared.errors import PreconditionError
from shared.tracking.samples import FOLDER
from tests.bench.timing import Spread, interleaved
from tests.support.browser import CHROMIUM, MISSING, Page, browser
from tests.support.run_records import evaluation, step, write_run, write_samples

_LAYERS = 24
_TOKENS = 200
_DRAWN = (
    "document.querySelector('#plot-reward path') !== null && document.querySelectorAll('.rows tbody tr').length > 0"
)
QUICK = {"rounds": 1, "samples": 500, "steps": 50}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="paired turns that count")
    parser.add_argument("--samples", type=int, default=10_000, help="samples of the run")
    parser.add_argument("--steps", type=int, default=500, help="steps of the run, each with as many samples")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """`server_cpu_seconds` are of the command from its start, imports included.

    Raises:
        PreconditionError: there is no Chromium.
    """
    if CHROMIUM is None:
        raise PreconditionError(MISSING)
    each = max(1, arguments.samples // arguments.steps)
    with tempfile.TemporaryDirectory(prefix="routershift-view-") as name, browser(Path(name) / "chromium") as page:
        runs = {"many": each, "tenth": max(1, each // 10)}
        folders = {variant: _write(Path(name) / variant, arguments.steps, of) for variant, of in runs.items()}
        spent: dict[str, list[float]] = {variant: [] for variant in folders}
        with contextlib.ExitStack() as last:
            addresses: dict[str, tuple[str, psutil.Process]] = {}

            def prepare(variant: str) -> None:
                last.close()
                page.open("about:blank")
                addresses[variant] = last.enter_context(_view(folders[variant]))

            def draw(variant: str) -> None:
                address, server = addresses[variant]
                _open(page, address)
                times = server.cpu_times()
                spent[variant].append(times.user + times.system)

            variants = {variant: partial(draw, variant) for variant in folders}
            timings = interleaved(variants, arguments.rounds, prepare=prepare)
        return {
            "samples": {variant: arguments.steps * of for variant, of in runs.items()},
            "megabytes": {variant: _megabytes(folder / FOLDER) for variant, folder in folders.items()},
            "seconds_to_drawn": {variant: asdict(timings.spread(variant)) for variant in folders},
            "server_cpu_seconds": {variant: asdict(Spread.of(taken[1:])) for variant, taken in spent.items()},
            "ratio_of_tenth": asdict(timings.ratio("tenth", "many")),
        }


def _open(page: Page, address: str) -> None:
    page.command("Page.navigate", url=address)
    page.wait(_DRAWN)
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def _write(folder: Path, steps: int, each: int) -> Path:
    """A run as the learner leaves it."""
    evaluations = [evaluation(version, 0.3) for version in range(0, steps + 1, 10)]
    write_run(folder, [step(number, _LAYERS) for number in range(1, steps + 1)], evaluations)
    write_samples(folder, range(1, steps + 1), each, tokens=_TOKENS, layers=_LAYERS)
    return folder


@contextlib.contextmanager
def _view(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The command itself: its address and its process."""
    command = [sys.executable, "-m", "services.cli.main", "view", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6
