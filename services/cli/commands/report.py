"""A plot and a page of what a run did: report.png and report.html in its folder."""

import argparse
import base64
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from services.cli.arguments import add_run
from services.cli.evaluations import by_set, of_main_set, versions_in_words
from services.cli.recipe import run_folder
from shared.errors import MissingDependencyError, PreconditionError
from shared.process.exits import EXIT_OK
from shared.streams.keys import Stream
from shared.tracking import records
from shared.weights import published

PLOT = "report.png"
PAGE = "report.html"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>RouterShift run {run}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }}
img {{ max-width: 100% }}
</style></head><body>
<h1>Run {run}</h1>
<table>{summary}</table>
<p><img alt="reward, accuracy, staleness, gamma, fractions, entropy, queues and time over steps"
src="data:image/png;base64,{image}"></p>
<h2>Held-out evaluations</h2>
<table>{evaluations}</table>
<p>{best}</p>
</body></html>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    for path in write(run_folder(arguments.name)):
        print(path)
    return EXIT_OK


def write(folder: Path) -> tuple[Path, Path]:
    """Writes report.png and report.html into the run's folder and gives their paths.

    Raises:
        PreconditionError: the run has no records yet.
        MissingDependencyError: matplotlib is not installed.
    """
    steps = records.steps(folder / records.LEARNER)
    evaluations = records.read(folder / records.EVALUATIONS)
    if not steps and not evaluations:
        raise PreconditionError(f"run folder {folder} holds no records yet; a run writes them as it trains")
    plot, page = folder / PLOT, folder / PAGE
    _draw(plot, steps, evaluations)
    summary_file = folder / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
    page.write_text(
        _PAGE.format(
            run=html.escape(folder.name),
            summary="".join(_row((key, records.dumps(value))) for key, value in summary.items()),
            image=base64.b64encode(plot.read_bytes()).decode("ascii"),
            evaluations="".join(_evaluation_rows(evaluations)),
            best=html.escape(_in_words(best(folder, evaluations))) if evaluations else "",
        ),
        encoding="utf-8",
    )
    return plot, page


def best(folder: Path, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The version of the highest sampled accuracy on the main set, the earliest of equals, and where it lies.

    `sampled_by` is there where that version did not answer alone: while training goes on, later ones answer some of
    the problems. `checkpoint` and `weights` are None where there are none: version 0 is the model of the start.
    """
    highest = max(of_main_set(evaluations), key=lambda evaluation: evaluation["accuracy"])
    version, sampled_by = highest["version"], versions_in_words(highest)
    checkpoints = sorted((folder / "checkpoints").glob(f"step-{version:08d}-*"))
    weights = folder / "weights" / published.folder_name(version)
    return {
        "version": version,
        "accuracy": round(highest["accuracy"], 4),
        **({"sampled_by": sampled_by} if sampled_by else {}),
        "checkpoint": str(checkpoints[-1]) if checkpoints else None,
        "weights": str(weights) if weights.is_dir() else None,
    }


def _in_words(best: dict[str, Any]) -> str:
    places = [best[kind] for kind in ("checkpoint", "weights") if best[kind]]
    sampled_by = f", {best['sampled_by']}" if "sampled_by" in best else ""
    return f"Best: version {best['version']}" + (f" in {' and '.join(places)}" if places else "") + sampled_by


def _row(cells: Iterable[Any], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _evaluation_rows(evaluations: Sequence[dict[str, Any]]) -> Iterator[str]:
    ks = _pass_at(evaluations)
    names = [
        "set",
        "version",
        "sampled by",
        "pass@1",
        *(f"pass@{k}" for k in ks),
        "greedy",
        "valid",
        "problems",
        "samples",
    ]
    yield _row(names, "th")
    for e in evaluations:
        versions = sorted({e["oldest_version"], e["newest_version"]})
        shares = [e["accuracy"], *(e["pass_at_k"].get(k) for k in ks), e["greedy_accuracy"], e["valid"]]
        shown = ["" if share is None else f"{share:.4f}" for share in shares]
        yield _row([e["set"], e["version"], "-".join(map(str, versions)), *shown, e["problems"], e["samples"]])


def _pass_at(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    """Every k of a pass@k, for a run that goes on may measure others than before."""
    return list(dict.fromkeys(k for evaluation in evaluations for k in evaluation["pass_at_k"]))


def _draw(path: Path, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("the report needs matplotlib: pip install 'routershift[local]'") from None
    figure = Figure(figsize=(11, 12), layout="constrained")
    panels = figure.subplots(4, 2, sharex=True).ravel()
    names = sorted({name for record in steps for name in record})
    fractions = [name for name in names if name.endswith("_fraction")]
    gammas = [name for name in names if name.startswith("gamma_") and name not in fractions]
    curves: dict[str, Sequence[str]] = {
        "reward": ["reward_mean"],
        "accuracy": ["train_accuracy"],
        "staleness (versions)": ["staleness_mean", "staleness_max"],
        "gamma": gammas,
        "fractions of tokens": fractions,
        "entropy and KL (nats)": ["entropy", "kl", "reference_kl"],
    }
    for panel, (title, keys) in zip(panels, curves.items(), strict=False):
        panel.set_title(title)
        for key in keys:
            _line(panel, [(r["step"], r.get(key)) for r in steps], key)
    accuracy, queues, seconds = panels[1], panels[6], panels[7]
    for held_out, found in by_set(evaluations).items():
        for name in ("accuracy", "greedy_accuracy"):
            _line(accuracy, [(e["version"], e[name]) for e in found], f"{held_out}: {name}")
        for k in _pass_at(found):
            points = [(e["version"], e["pass_at_k"][k]) for e in found if k in e["pass_at_k"]]
            _line(accuracy, points, f"{held_out}: pass@{k}")
    queues.set_title("stream entries")
    for stream in Stream:
        _line(queues, [(record["step"], record["queue"][stream]) for record in steps], stream)
    seconds.set_title("seconds of a step")
    phases = sorted({phase for record in steps for phase in record["seconds"]})
    x = [record["step"] for record in steps]
    seconds.stackplot(x, [[r["seconds"].get(p, 0.0) for r in steps] for p in phases], labels=phases)
    seconds.set_ylim(0, 2 * median(sum(r["seconds"].values()) for r in steps) if steps else 1)
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    for panel in panels[-2:]:
        panel.set_xlabel("step")
    figure.savefig(path, dpi=110)


def _line(panel: Any, points: Sequence[tuple[float, float | None]], label: str) -> None:
    """A curve; a record without the value, or with null for one that was not finite, has no point."""
    if known := [(x, y) for x, y in points if y is not None]:
        panel.plot(*zip(*known, strict=True), ".-", label=label, linewidth=1.2, markersize=3)
