"""The outcomes of a run, as docs/explanation/stability.md has fixed them, and how arms compare over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tests.bench.study.cells import ABLATIONS

COLLAPSED = 0.5  # share of the start's pass@1 below which a run has collapsed
BURST = 3.0  # times the median share of clipped tokens of a run, above which a batch is a burst
RESAMPLES = 10_000
# (better, than): the differences that are compared, fixed before any run.
HEADLINE = (
    ("grpo+shift", "grpo+none"),
    ("grpo+shift", "grpo+permuted"),
    ("grpo+shift", "grpo+mean"),
    ("gmpo+none", "grpo+none"),
    ("gmpo+shift", "gmpo+none"),
    ("gmpo+shift", "gmpo+permuted"),
    ("gmpo+shift", "gmpo+mean"),
)
_PLACEBOS = ("permuted", "mean")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out accuracy of a version."""

    step: int
    pass_at_1: float  # temperature 1
    pass_at_4: float
    greedy: float

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def outcomes(evaluations: Sequence[Mapping[str, float]], batches: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a run came to, by name; None where no batch has the number.

    Args:
        evaluations: the first is of the start.
    """
    accuracy = [evaluation["pass_at_1"] for evaluation in evaluations]
    below = [evaluation["step"] for evaluation in evaluations if evaluation["pass_at_1"] < COLLAPSED * accuracy[0]]
    log_norms = np.log(np.maximum(_of(batches, "grad_norm"), 1e-12))
    clipped = _of(batches, "clip_fraction")
    return {
        "final": accuracy[-1],
        "final_greedy": evaluations[-1]["greedy"],
        "final_pass_at_4": evaluations[-1]["pass_at_4"],
        "best": max(accuracy),
        "collapsed_at": below[0] if below and accuracy[-1] < COLLAPSED * accuracy[0] else None,
        "log_grad_norm_std": _or_none(log_norms.std()) if log_norms.size else None,
        "log_ratio_max_mean": _mean(np.log(np.maximum(_of(batches, "ratio_max"), 1e-12))),
        "kl": _mean(_of(batches, "kl")),
        "clip_fraction": _mean(clipped),
        "clip_bursts": int((clipped > BURST * np.median(clipped)).sum()) if clipped.size else None,
        **{
            name: _mean(_of(batches, name))
            for name in (
                "gamma_mean", "gamma_p10", "entropy", "expert_overlap", "expert_load_entropy",
            )
        },
    }  # fmt: skip


def compared(arms: Sequence[str]) -> list[tuple[str, str]]:
    """(better, than) of the arms that are there, each pair once.

    Those of the headline; then in each objective `shift` and every ablation with both placebos of the same lower bound
    of gamma, ablations with `shift` of that bound, and every arm with the plain one.
    """
    pairs = list(HEADLINE)
    for arm in arms:
        objective, _, correction = arm.partition("+")
        name, at, bound = correction.partition("@")
        if name == "shift" or name in ABLATIONS:
            others = _PLACEBOS if name == "shift" else ("shift", *_PLACEBOS)
            pairs += [(arm, f"{objective}+{other}{at}{bound}") for other in others]
        if name == "bf16_baseline":
            pairs.append((arm, f"{objective}+bf16_shift{at}{bound}"))
        pairs.append((arm, f"{objective}+{'bf16' if name.startswith('bf16_') else 'none'}"))
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and set(pair) <= set(arms)]


@dataclass(frozen=True, slots=True)
class Difference:
    """How two arms differ over the seeds that both have, paired."""

    mean: float
    low: float  # bounds of the 95 % bootstrap interval
    high: float
    seeds: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(better: Mapping[int, float], than: Mapping[int, float]) -> Difference | None:
    """The mean over seeds of `better` - `than`, and its percentile bootstrap interval; None without two common seeds.

    Both by seed. Seeds are drawn with replacement, with the same random numbers for every pair.
    """
    common = sorted(better.keys() & than.keys())
    if len(common) < 2:
        return None
    found = np.array([better[seed] - than[seed] for seed in common])
    drawn = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.quantile(found[drawn].mean(axis=1), [0.025, 0.975])
    return Difference(float(found.mean()), float(low), float(high), dict(zip(common, map(float, found), strict=True)))


def _of(batches: Sequence[Mapping[str, float]], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([batch[name] for batch in batches if name in batch], np.float64)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    return _or_none(values.mean()) if values.size else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
