"""The planner's simulation over real runs on this machine: seconds of a step, foretold and measured.

Service times are measured with each stage alone: decoding at two numbers of responses at once, and training. Lengths
are those that were sampled. The share of groups with equal rewards is that of the run, since what a policy learns is
not simulated. Stages have more of the processor alone than beside the others, which the simulation does not know.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.planner.simulation import System, simulate
from shared.errors import InvalidInputError
from tests.bench.timing import Spread
from tests.bench.training import ours, stages
from tests.bench.training.comparison import Workload
from tests.bench.training.figures import Training

_RECIPE = ours.REPOSITORY / "deploy/recipes/countdown.toml"
_FEW = 8  # prompts in flight of the second measurement of decoding
QUICK = {"rounds": 1, "steps": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="runs at each staleness, each with a seed of its own")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a run")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2], help="run.max_staleness of the runs")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about two minutes for a round of two runs. Raises InvalidInputError for numbers that measure nothing."""
    for option, least in (("rounds", 1), ("steps", 2)):
        if (number := getattr(arguments, option)) < least:
            raise InvalidInputError(f"--{option} is {number}; it must be at least {least}")
    found: dict[int, list[tuple[float, float]]] = {lag: [] for lag in arguments.staleness}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number in range(arguments.rounds):
            base = Path(folder) / str(number)
            measured = _measured(_workload(arguments, number, max(arguments.staleness)), base)
            for lag in arguments.staleness:
                workload = _workload(arguments, number, lag)
                _say(f"round {number + 1}/{arguments.rounds}: a run at staleness {lag}")
                trained = ours.train(
                    _RECIPE, workload.settings, base / f"lag-{lag}" / "run", save_every=arguments.steps, pinned=True
                )
                foretold = _foretold(workload, measured, trained)
                real = trained.seconds / arguments.steps
                _say(f"    {foretold:.3f} s a step foretold, {real:.3f} s measured")
                found[lag].append((foretold, real))
    return {
        "staleness": {
            str(lag): {
                "ratio": Spread.of([foretold / real for foretold, real in pairs]).median,
                "foretold_seconds": [foretold for foretold, _ in pairs],
                "measured_seconds": [real for _, real in pairs],
            }
            for lag, pairs in found.items()
        },
        "steps": arguments.steps,
        "rounds": arguments.rounds,
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """Service times of the stages alone."""

    few: tuple[float, float]  # responses at once, and seconds of a decoding step
    many: tuple[float, float]
    train_tokens_per_second: float
    lengths: Sequence[int]

    def decode_seconds(self, sequences: int) -> float:
        """On the line through both; below the smaller number, as at that."""
        (low, fast), (high, slow) = self.few, self.many
        return fast + (slow - fast) * (max(sequences, low) - low) / (high - low)


def _workload(arguments: argparse.Namespace, number: int, lag: int) -> Workload:
    settings = {"run.steps": arguments.steps, "run.max_staleness": lag, "generation.engine": "torch"}
    return Workload(
        name="countdown", recipe_file=_RECIPE, settings=settings, save_every=arguments.steps,
        targets=(), target=0.0, problems=0, samples=0,
    ).seeded(number)  # fmt: skip


def _measured(workload: Workload, folder: Path) -> _Measured:
    _say("each stage alone")
    run, n = workload.recipe.run, workload.recipe.rollout.n
    steps = 4
    slots = workload.recipe.generation.max_num_seqs
    problems = workload.train(steps * run.groups_per_step + 2 * run.tickets)
    work = stages.Work(_RECIPE, workload.recipe, workload.settings, problems)
    many, groups = stages.generation(work, folder / "many")
    few_run = run.model_copy(update={"groups_per_step": _FEW, "max_staleness": 0})
    few_recipe = workload.recipe.model_copy(update={"run": few_run})
    few, _ = stages.generation(replace(work, recipe=few_recipe, problems=problems[: 12 * _FEW]), folder / "few")
    learner = stages.learner(work, groups, workload.judge, folder / "learner", steps)
    low, high = min(slots, _FEW * n), min(slots, run.tickets * n)
    return _Measured(
        (low, low / few.tokens_per_second),
        (high, high / many.tokens_per_second),
        learner.tokens_per_second,
        [length for group in groups for length in _lengths(group)],
    )


def _lengths(group: pb.TrajectoryGroup) -> list[int]:
    return [wire.decode_completion(trajectory.completion).token_ids.size for trajectory in group.trajectories]


def _foretold(workload: Workload, measured: _Measured, trained: Training) -> float:
    recipe = workload.recipe
    lengths = np.array(measured.lengths)
    system = System(
        groups=recipe.run.groups_per_step,
        n=recipe.rollout.n,
        max_staleness=recipe.run.max_staleness,
        tickets=recipe.run.tickets,
        replicas=1,
        slots=recipe.generation.max_num_seqs,
        decode_seconds=measured.decode_seconds,
        prefill_seconds=0.0,  # in the time of decoding, as it was measured
        length=lambda rng: int(rng.choice(lengths)),
        reward_seconds=0.0,
        train_seconds=lambda tokens: tokens / measured.train_tokens_per_second,
        publish_seconds=0.0,  # in the time of training
        load_seconds=0.0,
        token_bytes=0.0,
        stream_bandwidth=1.0,
        unused=1 - trained.trained_rollouts / trained.rollouts,
    )
    outcome = simulate(system, recipe.run.steps, warm_up=0)
    return outcome.seconds / outcome.steps


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
