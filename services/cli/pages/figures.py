"""Figures as data: what the pages draw, without a word about how."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise, starmap
from statistics import fmean
from typing import Any, Literal

Value = float | None
_MOST_POINTS = 600  # of a curve or a heat map; more than a screen shows


@dataclass(frozen=True, slots=True)
class Series:
    """A curve of one run.

    `low` and `high` are a band about it: an interval of an estimate, or the extremes of the steps that a point stands
    for. `notes` are words for single points.
    """

    name: str
    run: int  # which of the page's runs
    x: Sequence[float]
    y: Sequence[Value]
    low: Sequence[Value] | None = None
    high: Sequence[Value] | None = None
    notes: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over steps.

    `bars`: the bands are intervals of single estimates, and drawn as such. `stacked`: on top of each other.
    """

    id: str
    title: str
    note: str
    series: Sequence[Series]
    unit: str = ""
    bars: bool = False
    stacked: bool = False
    log: bool = False
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values of one run, layer by step: z[layer][step]. `ends` says in words what the two ends of the scale mean."""

    id: str
    title: str
    note: str
    run: int
    x: Sequence[float]
    y: Sequence[int]
    z: Sequence[Sequence[Value]]
    bounds: tuple[float, float]
    ends: tuple[str, str] = ("", "")
    kind: Literal["heatmap"] = "heatmap"


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that answer one question."""

    id: str
    short: str  # for a list of links; "": not in it
    title: str
    lead: str
    figures: Sequence[Lines | HeatMap] = field(default_factory=tuple)


def curve(name: str, run: int, points: Iterable[tuple[float, Value]], log: bool = False) -> Series | None:
    """A curve of the points that have a value, thinned to what a screen shows; None where none has.

    A thinned point is the mean of its steps, in a band of their extremes.
    """
    known = [(x, y) for x, y in points if isinstance(y, int | float) and not (log and y <= 0)]
    if not known:
        return None
    x, y = [p[0] for p in known], [float(p[1]) for p in known]
    if len(known) <= _MOST_POINTS:
        return Series(name, run, x, [rounded(v) for v in y])
    bins = _bins(len(known))
    return Series(
        name,
        run,
        [x[b[-1]] for b in bins],
        [rounded(fmean(y[i] for i in b)) for b in bins],
        [rounded(min(y[i] for i in b)) for b in bins],
        [rounded(max(y[i] for i in b)) for b in bins],
    )


def heat_map(
    id: str, title: str, note: str, run: int, steps: Sequence[Mapping[str, Any]], prefix: str,
    ends: tuple[str, str] = ("", ""),
) -> HeatMap | None:  # fmt: skip
    """A map of the records `PREFIX_layer_N`; None where there are none."""
    start = f"{prefix}_layer_"
    keys = dict.fromkeys(key for step in steps for key in step if key.startswith(start))
    layers = sorted(int(layer) for key in keys if (layer := key.removeprefix(start)).isdigit())
    having = [step for step in steps if any(f"{start}{layer}" in step for layer in layers)]
    if not having:
        return None
    bins = _bins(len(having))
    z = [[_mean(having[i].get(f"{start}{layer}") for i in b) for b in bins] for layer in layers]
    known = [value for row in z for value in row if value is not None]
    if not known:
        return None
    return HeatMap(
        id, title, note, run, [having[b[-1]]["step"] for b in bins], layers, z, (min(known), max(known)), ends
    )


def plain(value: Any) -> Any:
    """Sections, figures and series as dictionaries. Their numbers are not copied, as `dataclasses.asdict` would."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, list | tuple) and value and is_dataclass(value[0]):
        return [plain(inner) for inner in value]
    return value


def rounded(value: float) -> float:
    """Five significant digits: what a page shows, in a third of the bytes."""
    return float(f"{value:.5g}")


def _bins(count: int) -> list[range]:
    wanted = min(count, _MOST_POINTS)
    edges = [count * i // wanted for i in range(wanted + 1)]
    return list(starmap(range, pairwise(edges)))


def _mean(values: Iterable[Value]) -> Value:
    known = [value for value in values if value is not None]
    return rounded(fmean(known)) if known else None
