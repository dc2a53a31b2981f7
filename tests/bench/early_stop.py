"""A recipe with whole groups, with early scores and with early stop, in turns: what each trained rollout costs.

docs/benchmarks.md says what each figure means and how it is measured.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError
from tests.bench.timing import Spread
from tests.bench.training import ours

_RECIPE = ours.REPOSITORY / "deploy" / "recipes" / "countdown.toml"
# Fewer steps may be over before a run can be looked at.
QUICK = {"rounds": 1, "steps": 8, "groups": 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, interleaved")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of a run")
    parser.add_argument("--groups", type=int, default=32, help="prompts of a step")
    parser.add_argument("--samples", type=int, default=8, help="responses of a group")
    parser.add_argument("--first", type=int, default=4, help="responses of the first wave")
    parser.add_argument("--error", type=float, default=0.2, help="of the test, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each has the next")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about four minutes for a round on two idle cores."""
    if arguments.rounds < 1:
        raise InvalidInputError(f"--rounds is {arguments.rounds}; it must be at least 1")
    sides: dict[str, Mapping[str, object]] = {
        "whole": {},
        "early_scores": {"generation.early_scores": "true"},
        "early_stop": {
            "rollout.early_stop.first": arguments.first,
            "rollout.early_stop.error": arguments.error,
        },
    }
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.rounds):
            for side, settings in sides.items():
                sys.stderr.write(f"seed {seed}: {side}\n")
                rounds[side].append(figures := _train(arguments, settings, seed, Path(folder) / f"{side}-{seed}"))
                sys.stderr.write(f"    {figures}\n")
    return {"sides": {side: {"rounds": runs, **_compared(runs, rounds["whole"])} for side, runs in rounds.items()}}


def _train(arguments: argparse.Namespace, settings: Mapping[str, object], seed: int, folder: Path) -> dict[str, float]:
    """The figures of one run."""
    sizes = {
        "run.seed": seed,
        "run.steps": arguments.steps,
        "run.groups_per_step": arguments.groups,
        "rollout.n": arguments.samples,
        "generation.engine": "torch",
    }
    trained = ours.train(_RECIPE, {**sizes, **settings}, folder, save_every=arguments.steps)
    if not trained.tokens:
        raise InvalidInputError(
            f"--steps is {arguments.steps}: the run was over before it was looked at; raise --steps or --groups"
        )
    return {
        "tokens_per_trained_rollout": trained.tokens / trained.trained_rollouts,
        "cpu_seconds_per_trained_rollout": trained.cpu_seconds / trained.trained_rollouts,
        "trained_rollouts_per_second": trained.trained_rollouts / trained.seconds,
        **{f"groups_{outcome}": count for outcome, count in trained.where["groups_decided"].items()},
    }


def _compared(runs: Sequence[Mapping[str, float]], whole: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The figures over those of whole groups, paired by seed."""
    names = [name for name in whole[0] if name.endswith(("_rollout", "_second"))]
    return {
        "ratio_to_whole": {
            name: asdict(Spread.of([mine[name] / base[name] for mine, base in zip(runs, whole, strict=True)]))
            for name in names
        }
    }
