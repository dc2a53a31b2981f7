"""Draws the dashboards from a Prometheus, without Grafana: `python -m deploy.grafana.draw --help`.

Every query of a panel is asked for as Grafana would ask for it, and what has no answer is listed. So an empty panel, a
wrong unit or an illegible legend is seen before somebody opens the dashboard in an incident.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.grafana.write import FOLDER
from services.cli.pages.figures import HeatMap, Lines, Section, Series, curve, plain
from services.cli.pages.render import FIGURES, page

Fetch = Callable[[str], Any]  # from a path with its query, below the Prometheus' URL, to the JSON of its answer

_POINTS = 240  # of a curve
_UNITS = {"percentunit": "share", "ops": "per second", "short": "", "none": ""}
_OF_BYTES = {"bytes": "bytes", "Bps": "bytes/s"}  # shown in the largest of these that leaves 1 or more
_PREFIXES = (("Giga", 1e9), ("Mega", 1e6), ("kilo", 1e3))
_BUILT_IN = {"__rate_interval": "1m"}  # four scrapes or more of deploy/prometheus, as Grafana chooses it


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is drawn, in seconds since 1970, and the seconds from point to point."""

    start: float
    end: float

    @property
    def step(self) -> float:
        return max(5.0, (self.end - self.start) / _POINTS)


@dataclass(frozen=True, slots=True)
class Curve:
    """One series of an answer: its labels, and its points [s since 1970, value] that are numbers."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What Prometheus says to one query of a panel."""

    panel: Mapping[str, Any]
    legend: str
    expression: str  # with the variables of the dashboard in it
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard as its JSON says it."""

    title: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]  # panels by the title of their row
    variables: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> "Board":
        """Reads a dashboard; its text boxes have their default values.

        Raises:
            OSError: the file cannot be read.
            KeyError, ValueError: it is no dashboard of ours.
        """
        told = json.loads(path.read_text(encoding="utf-8"))
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for panel in told["panels"]:
            if panel["type"] == "row":
                rows[panel["title"]] = []
            else:
                rows[next(reversed(rows))].append(panel)
        boxes = {v["name"]: v["query"] for v in told["templating"]["list"] if v["type"] == "textbox"}
        return cls(told["title"], rows, _BUILT_IN | boxes)

    def answers(self, fetch: Fetch, window: Window) -> list[Answer]:
        """Asks every query of every panel.

        Raises:
            ValueError: Prometheus refused one, with its words.
        """
        return [
            Answer(panel, target["legendFormat"], expression, ask(fetch, expression, window))
            for panels in self.rows.values()
            for panel in panels
            for target in panel["targets"]
            for expression in [self._filled(target["expr"])]
        ]

    def _filled(self, expression: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: self.variables.get(match[1], match[0]), expression)


def without_data(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Panel with legend, and expression, of each query whose answer has no number."""
    return [(f"{a.panel['title']}: {a.legend}", a.expression) for a in answers if not any(c.points for c in a.curves)]


def drawn(board: Board, answers: Sequence[Answer], window: Window) -> str:
    """The HTML of a dashboard with its curves; it loads nothing. A colour is a run, where there are several."""
    runs = sorted({c.labels["run"] for a in answers for c in a.curves if "run" in c.labels}) or [""]
    figures = _Figures(answers, window, runs)
    sections = [
        Section(f"row-{i}", title, title, "", [made for panel in panels if (made := figures.of(panel)) is not None])
        for i, (title, panels) in enumerate(board.rows.items())
    ]
    until = f"{datetime.fromtimestamp(window.end, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return page(
        "board.html",
        FIGURES,
        folder=Path(__file__).parent,
        title=board.title,
        lead="As Grafana shows it from this Prometheus.",
        until=until,
        links=[(section.id, section.short) for section in sections],
        runs=[{"name": name, "dropped": {}} for name in runs],
        sections=sections,
        empty=without_data(answers),
        page={"runs": runs, "sections": plain(sections), "samples": None},
    )


class _Figures:
    """Panels as figures."""

    def __init__(self, answers: Sequence[Answer], window: Window, runs: Sequence[str]) -> None:
        self._answers, self._window, self._runs = answers, window, runs

    def of(self, panel: Mapping[str, Any]) -> Lines | HeatMap | None:
        """The figure of a panel; None where nothing answered."""
        answers = [a for a in self._answers if a.panel is panel]
        id = "panel-{y}-{x}".format(**panel["gridPos"])
        note = panel.get("description", "")
        if panel["type"] == "heatmap":
            return self._heat_map(id, f"{panel['title']} by layer", note, answers)
        defaults = panel["fieldConfig"]["defaults"]
        unit, factor = _unit(defaults.get("unit", ""), answers)
        series = [
            made
            for answer in answers
            for each in answer.curves
            if (made := self._curve(answer.legend, each, factor)) is not None
        ]
        if not series:
            return None
        if len(series) == 1:  # a legend has two names or more
            note = f"{note} {series[0].name}.".strip()
        return Lines(id, panel["title"], note, series, unit, stacked="stacking" in defaults.get("custom", {}))

    def _curve(self, legend: str, found: Curve, factor: float) -> Series | None:
        points = ((at, value * factor) for at, value in self._minutes(found))
        return curve(_legend(legend, found.labels), self._run(found), points)

    def _run(self, curve: Curve) -> int:
        run = curve.labels.get("run")
        return self._runs.index(run) if run in self._runs else 0

    def _minutes(self, curve: Curve) -> Iterator[tuple[float, float]]:
        return ((round((at - self._window.start) / 60, 3), value) for at, value in curve.points)

    def _heat_map(self, id: str, title: str, note: str, answers: Sequence[Answer]) -> HeatMap | None:
        layers = {int(c.labels["layer"]): dict(self._minutes(c)) for a in answers for c in a.curves if c.points}
        if not layers:
            return None
        x = sorted({at for points in layers.values() for at in points})
        z = [[points.get(at) for at in x] for _, points in sorted(layers.items())]
        known = [value for row in z for value in row if value is not None]
        return HeatMap(id, title, note, 0, x, sorted(layers), z, (min(known), max(known)))


def ask(fetch: Fetch, expression: str, window: Window) -> list[Curve]:
    """The series of an expression.

    Raises:
        ValueError: Prometheus refused it, with its words.
    """
    query = {"query": expression, "start": window.start, "end": window.end, "step": window.step}
    answer = fetch(f"/api/v1/query_range?{urllib.parse.urlencode(query)}")
    if answer["status"] != "success":
        raise ValueError(f"{expression}: {answer.get('error')}")
    return [
        Curve(result["metric"], [(at, number) for at, text in result["values"] if math.isfinite(number := float(text))])
        for result in answer["data"]["result"]
    ]


def _unit(unit: str, answers: Sequence[Answer]) -> tuple[str, float]:
    """What stands beside a title for a unit of Grafana's, and the factor from the values to it."""
    if unit not in _OF_BYTES:
        return _UNITS.get(unit, unit), 1
    most = max((abs(value) for a in answers for c in a.curves for _, value in c.points), default=0)
    prefix, size = next(((name, size) for name, size in _PREFIXES if most >= size), ("", 1.0))
    return f"{prefix}{_OF_BYTES[unit]}", 1 / size


def _legend(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend).strip()


def over_http(prometheus: str) -> Fetch:
    """Asks the Prometheus at a URL."""

    def fetch(path: str) -> Any:
        try:
            with urllib.request.urlopen(prometheus.rstrip("/") + path, timeout=60) as answer:  # noqa: S310  # as whoever draws gives it
                return json.load(answer)
        except urllib.error.HTTPError as error:  # 400 and 422 say in JSON what is wrong with a query
            return json.load(error)

    return fetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a page for each dashboard; the exit code is 1 where a query has no answer."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.draw", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its URL (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="up to now (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages")
    asked = parser.parse_args(arguments)
    end = time.time()
    window, fetch = Window(end - 60 * asked.minutes, end), over_http(asked.prometheus)
    asked.out.mkdir(parents=True, exist_ok=True)
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        board = Board.read(path)
        try:
            answers = board.answers(fetch, window)
        except (OSError, ValueError) as error:
            parser.error(f"--prometheus {asked.prometheus}: {error}")
        empty = without_data(answers)
        found += empty
        out = asked.out / f"{path.stem}.html"
        out.write_text(drawn(board, answers, window), encoding="utf-8")
        sys.stdout.write(f"{out}: {len(answers)} queries, {len(empty)} without data\n")
    for panel, query in found:
        sys.stderr.write(f"without data: {panel}\n    {query}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
