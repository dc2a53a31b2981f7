"""What kept runs show, with every seed, as one file of HTML in the look of a run's report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from services.cli.pages.figures import Lines, Section, Series, plain, rounded
from services.cli.pages.render import FIGURES, page
from tests.bench.study.cells import Cell

Record = Mapping[str, Any]

_EVALUATIONS = {
    "pass_at_1": ("Held-out pass@1", "At temperature 1; every seed of every arm."),
    "greedy": ("Held-out, greedy", "Every seed of every arm."),
    "pass_at_4": ("Held-out pass@4", "Every seed of every arm."),
}
# Of each batch: the mean over seeds, in a band of the lowest and the highest seed.
_BATCHES: Mapping[str, tuple[str, str, bool]] = {
    "gamma_mean": ("γ, mean over tokens", "Before its lower bound; 1: no router has moved.", False),
    "gamma_p10": ("γ, 10th percentile over tokens", "A tenth of the tokens has less, before the lower bound.", False),
    "grad_norm": ("Gradient norm", "Before clipping, on a logarithmic scale.", True),
    "ratio_max": ("Largest importance ratio", "Learner over sampler, on a logarithmic scale.", True),
    "kl": ("KL divergence", "From the sampler's policy, in nats.", False),
    "clip_fraction": ("Tokens clipped", "Share of the batch's tokens.", False),
    "entropy": ("Entropy", "Of the policy, in nats.", False),
    "reward": ("Reward", "Of all that was sampled.", False),
    "expert_overlap": ("Experts chosen again", "Share of the sampler's experts that the learner chooses too.", False),
    "expert_load_entropy": ("Entropy of the experts' load", "Over that of an even load.", False),
}
_OUTCOMES = {
    "final": "final pass@1", "final_greedy": "final greedy", "final_pass_at_4": "final pass@4", "best": "best pass@1",
    "log_grad_norm_std": "log gradient norm, std", "log_ratio_max_mean": "log largest ratio", "kl": "KL",
    "clip_fraction": "clipped", "clip_bursts": "bursts", "gamma_mean": "γ", "gamma_p10": "γ, 10th percentile",
    "entropy": "entropy",
}  # fmt: skip
_LABEL, _PLOT, _EDGE, _ROW = 250, 700, 24, 26  # of the drawn differences, in px


def results_page(found: Mapping[str, Any], records: Sequence[Record], command: str) -> str:
    """The page of one or several conditions.

    Args:
        found: what `tests.bench.stability.summary` says of the records.
        records: one run each.
        command: that makes the same page.
    """
    arms = list(dict.fromkeys(arm for each in found["conditions"].values() for arm in each["arms"]))
    made = [_Condition(i, name, each, arms) for i, (name, each) in enumerate(found["conditions"].items())]
    sections = [each.section(records) for each in made]
    machines = {
        f"{r['machine']['cores']} cores of {r['machine']['cpu']}, torch {r['machine']['torch']}" for r in records
    }
    return page(
        "page.html",
        FIGURES,
        folder=Path(__file__).parent,
        title="Stability study",
        links=[("differences", "Differences"), *((s.id, s.short) for s in sections), ("runs", "Runs")],
        runs=[{"name": arm} for arm in arms],
        sections=sections,
        start=found["start"],
        protocol=records[0]["protocol"],
        facts={
            "runs": f"{found['runs']}, {found['cpu_seconds'] / 60:.0f} CPU-minutes",
            "commits of the runs": ", ".join(found["commits"]),
            "machines": "; ".join(sorted(machines)),
            "fingerprint of the start's model": found["model"],
            "made by": command,
        },
        conditions=[each.shown() for each in made],
        page={"runs": arms, "sections": plain(sections), "samples": None},
    )


@dataclass(frozen=True, slots=True)
class _Condition:
    """A lag and a pressure, with its arms."""

    number: int
    name: str
    found: Mapping[str, Any]  # arms and differences
    arms: Sequence[str]  # of the page, whose colours are in this order

    def section(self, records: Sequence[Record]) -> Section:
        own = [r for r in records if Cell.from_json(r["cell"]).condition == self.name]
        figures = [*self._evaluated(own), *self._batches(own)]
        return Section(
            f"condition-{self.number}", self.name, f"Curves: {self.name}",
            "A colour is an arm, switched off by its name above; a dash is a seed. Of batches the mean over seeds, on "
            "scales that are not logarithmic in a band from the lowest to the highest.", figures,
        )  # fmt: skip

    def shown(self) -> dict[str, Any]:
        """What the template writes of it: differences as a drawing and a table, and every run."""
        return {
            "name": self.name,
            "drawn": _drawn(self.found["differences"]),
            "differences": [
                [pair, *(_interval(values.get(name)) for name in list(_OUTCOMES)[:4])]
                for pair, values in self.found["differences"].items()
            ],
            "runs": [
                [arm, str(seed), *(_number(run[name]) for name in _OUTCOMES), _collapse(run)]
                for arm, seeds in self.found["arms"].items()
                for seed, run in seeds.items()
            ],
            "compared": list(_OUTCOMES.values())[:4],
            "outcomes": list(_OUTCOMES.values()),
        }

    def _evaluated(self, records: Sequence[Record]) -> Iterator[Lines]:
        for name, (title, note) in _EVALUATIONS.items():
            series = [
                Series(
                    f"seed {r['seed']}",
                    self.arms.index(_arm(r)),
                    [e["step"] for e in r["evaluations"]],
                    [rounded(e[name]) for e in r["evaluations"]],
                )
                for r in records
            ]
            yield Lines(f"{name}-{self.number}", title, note, series)

    def _batches(self, records: Sequence[Record]) -> Iterator[Lines]:
        for name, (title, note, log) in _BATCHES.items():
            series = []
            for arm in dict.fromkeys(map(_arm, records)):
                runs = [r["batches"] for r in records if _arm(r) == arm]
                steps = [
                    (step + 1, values)
                    for step in range(max(map(len, runs)))
                    if (values := [run[step][name] for run in runs if step < len(run) and name in run[step]])
                ]
                series.append(
                    Series(
                        "mean of seeds",
                        self.arms.index(arm),
                        [step for step, _ in steps],
                        [rounded(fmean(values)) for _, values in steps],
                        [rounded(min(values)) for _, values in steps],
                        [rounded(max(values)) for _, values in steps],
                    )
                )
            yield Lines(f"{name}-{self.number}", title, note, [s for s in series if s.x], log=log)


def _drawn(differences: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Where in px the interval of each pair's final pass@1 begins and ends, its mean and its seeds lie."""
    known = {pair: values["final"] for pair, values in differences.items() if "final" in values}
    edges: list[float] = [0.0, *(v for d in known.values() for v in (d["low"], d["high"], *d["seeds"].values()))]
    low, high = min(edges), max(edges)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(_LABEL + _EDGE + (value - low) / span * (_PLOT - 2 * _EDGE), 1)

    return {
        "width": _LABEL + _PLOT,
        "height": _ROW * len(known) + 24,
        "zero": at(0.0),
        "ends": [(at(value), f"{value:+.3f}") for value in (low, high) if value],
        "rows": [
            {
                "pair": pair, "y": _ROW * i + 14, "low": at(d["low"]), "high": at(d["high"]), "mean": at(d["mean"]),
                "seeds": [at(value) for value in d["seeds"].values()], "shown": d["low"] > 0 or d["high"] < 0,
                "words": f"{pair}: {_interval(d)}",
            }
            for i, (pair, d) in enumerate(known.items())
        ],
    }  # fmt: skip


def _arm(record: Record) -> str:
    return Cell.from_json(record["cell"]).arm


def _interval(value: Mapping[str, Any] | None) -> str:
    return "–" if value is None else f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _collapse(run: Mapping[str, Any]) -> str:
    return "no" if run["collapsed_at"] is None else f"at {run['collapsed_at']}"
