"""`routershift report`: what a run did, as a picture and as a page."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import records
from shared.errors import MissingDependencyError, PreconditionError
from shared.streams.keys import Stream

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
<p><img alt="reward, accuracy, staleness, gamma, queues and time over steps"
src="data:image/png;base64,{image}"></p>
<h2>Held-out evaluations</h2>
<table><tr><th>version</th><th>accuracy</th><th>valid</th><th>problems</th><th>samples</th></tr>{evaluations}</table>
</body></html>
"""


def write(folder: Path) -> tuple[Path, Path]:
    """Writes report.png and report.html into the run's folder and gives their paths.

    Raises:
        PreconditionError: the run has no records yet.
        MissingDependencyError: matplotlib is not installed.
    """
    steps = records.read(folder / records.LEARNER)
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
            summary=_rows((key, json.dumps(value)) for key, value in summary.items()),
            image=base64.b64encode(plot.read_bytes()).decode("ascii"),
            evaluations=_rows(
                (e["version"], f"{e['accuracy']:.4f}", f"{e['valid']:.4f}", e["problems"], e["samples"])
                for e in evaluations
            ),
        ),
        encoding="utf-8",
    )
    return plot, page


def _rows(rows: Any) -> str:
    return "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)


def _draw(path: Path, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("the report needs matplotlib: pip install 'routershift[local]'") from None
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True).ravel()
    x = [record["step"] for record in steps]

    def line(panel: Any, key: str, label: str) -> None:
        points = [(record["step"], record[key]) for record in steps if record.get(key) is not None]
        panel.plot([p[0] for p in points], [p[1] for p in points], ".-", label=label, linewidth=1.2, markersize=3)

    line(panels[0], "reward_mean", "mean reward of the batch")
    line(panels[1], "train_accuracy", "training batch")
    panels[1].plot(
        [e["version"] for e in evaluations], [e["accuracy"] for e in evaluations], "o-", color="black", label="held out"
    )
    line(panels[2], "staleness_mean", "mean")
    line(panels[2], "staleness_max", "maximum")
    line(panels[3], "gamma_mean", "mean")
    line(panels[3], "gamma_p10", "10th percentile")
    line(panels[3], "gamma_at_lag_zero", "at lag zero")
    for stream in Stream:
        panels[4].plot(x, [record["queue"][stream] for record in steps], label=stream, linewidth=1.2)
    phases = sorted({phase for record in steps for phase in record["seconds"]})
    panels[5].stackplot(x, [[r["seconds"].get(p, 0.0) for r in steps] for p in phases], labels=phases)
    panels[5].set_ylim(0, 2 * sorted(sum(r["seconds"].values()) for r in steps)[len(steps) // 2] if steps else 1)
    titles = ("reward", "accuracy", "staleness (versions)", "gamma", "stream entries", "seconds of a step")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize="small")
    for panel in panels[4:]:
        panel.set_xlabel("step")
    figure.savefig(path, dpi=110)
