"""What the records of evaluations say: of the main held-out set, of the versions that answered, and how surely."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.tracking import records
from shared.weights import published

_Z_95 = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution


def of_main_set(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the held-out set that decides which version is the best."""
    return [evaluation for evaluation in evaluations if evaluation["main"]]


def by_set(evaluations: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those of each held-out set, by its name, in order."""
    names = dict.fromkeys(evaluation["set"] for evaluation in evaluations)
    return {name: [evaluation for evaluation in evaluations if evaluation["set"] == name] for name in names}


def versions_in_words(evaluation: Mapping[str, Any]) -> str:
    """Which versions sampled, where it is not the evaluated one alone; else ""."""
    oldest, newest = evaluation["oldest_version"], evaluation["newest_version"]
    if oldest == newest == evaluation["version"]:
        return ""
    return f"sampled by version {oldest}" if oldest == newest else f"sampled by versions {oldest} to {newest}"


def takes_turns(evaluations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the model spoke more than once in some response: there is an environment, and it is used."""
    return any(evaluation.get("mean_turns", 1.0) > 1.0 for evaluation in evaluations)


def best(folder: Path, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The version of the highest sampled accuracy on the main set, the earliest of equals, and where it lies.

    `sampled_by` is there where that version did not answer alone: while training goes on, later ones answer some of
    the problems. `checkpoint` and `weights` are None where there are none: version 0 is the model of the start.
    """
    highest = max(of_main_set(evaluations), key=lambda evaluation: evaluation["accuracy"])
    version, sampled_by = highest["version"], versions_in_words(highest)
    checkpoints = sorted((folder / records.CHECKPOINTS).glob(f"step-{version:08d}-*"))
    weights = folder / records.WEIGHTS / published.folder_name(version)
    return {
        "version": version,
        "accuracy": round(highest["accuracy"], 4),
        **({"sampled_by": sampled_by} if sampled_by else {}),
        "checkpoint": str(checkpoints[-1]) if checkpoints else None,
        "weights": str(weights) if weights.is_dir() else None,
    }


def interval(share: float, trials: float) -> tuple[float, float]:
    """The Wilson score interval of 95 % for a share that was seen in so many independent trials.

    It stays within 0 and 1 and is of use near both, where the normal approximation is not (Wilson 1927). `trials` may
    be a fraction: an effective number.
    """
    if trials <= 0:
        return 0.0, 1.0
    z2 = _Z_95**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def independent_samples(evaluation: Mapping[str, Any]) -> float:
    """How many independent samples the sampled accuracy is worth; between its problems and its samples.

    Samples of one problem are alike, so that four of each of 512 problems say less than 2048 problems would. With p the
    chance that a problem is solved, pass@1 = E[p] and pass@2 = 2 E[p] - E[p^2], which gives the variance of p over
    problems and with it the variance of the accuracy: (Var[p] + E[p (1 - p)] / k) / problems for k samples of each.
    Without pass@2 only the problems count, which is never too bold.
    """
    problems, samples, accuracy = evaluation["problems"], evaluation["samples"], evaluation["accuracy"]
    pass_at_2 = evaluation["pass_at_k"].get("2")
    each = samples / problems if problems else 0.0
    if pass_at_2 is None or each <= 1 or not 0 < accuracy < 1:
        return float(problems)
    whole = accuracy * (1 - accuracy)
    within = min(max(0.0, pass_at_2 - accuracy), whole)  # E[p (1 - p)]; the rest of the whole is Var[p]
    return float(problems * whole / (whole - within + within / each))


def accuracy_interval(evaluation: Mapping[str, Any]) -> tuple[float, float]:
    """95 % of the sampled accuracy, as other problems of the same kind would have it."""
    return interval(evaluation["accuracy"], independent_samples(evaluation))
