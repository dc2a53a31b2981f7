"""Whole training runs: by us asynchronously and synchronously, and by TRL's GRPOTrainer, in turns.

docs/benchmarks.md says what each figure means and how it is measured.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError, NotFoundError
from tests.bench.training import long_tail
from tests.bench.training.comparison import Options, Workload, compare
from tests.bench.training.ours import REPOSITORY

_TRL_MICRO_BATCH = 16  # rollouts of arithmetic: its vocabulary makes the logits of a whole step several GB
_TRL_STEPS = 6  # of long_tail, each as long as its longest response
_RECIPES = REPOSITORY / "deploy" / "recipes"
ENGINES = ("torch", "vllm")
QUICK = {"rounds": 1, "steps": 2, "groups": 8, "held_out": 16, "workloads": ["countdown"], "engines": ["torch"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workloads", type=_names, default=["countdown"], help=f"of {', '.join(WORKLOADS)}; with commas between"
    )
    parser.add_argument(
        "--engines", type=_names, default=[*ENGINES], help="of ours; the synchronous run has the first of them"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, interleaved")
    parser.add_argument("--steps", type=int, help="optimizer steps of a run; default: those of the recipe")
    parser.add_argument("--groups", type=int, help="prompts of a step; default: those of the recipe")
    parser.add_argument("--held-out", type=int, default=512, help="held-out problems on which accuracy is measured")
    parser.add_argument(
        "--evaluate-from", type=int, default=1, help="first step whose weights are judged on held-out problems"
    )
    parser.add_argument(
        "--stage-rounds", type=int, help="first rounds in which each stage is measured alone as well; default: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each has the next")
    parser.add_argument("--threads", type=int, default=2, help="of TRL; ours has one in the learner, one in generation")
    parser.add_argument(
        "--pin", action="store_true", help="give the learner the first core to itself, and the others the rest"
    )
    parser.add_argument(
        "--model", type=Path, default=_RECIPES / "arithmetic/model", help="of arithmetic, by its make_model.py"
    )
    parser.add_argument(
        "--dense-model", type=Path, default=_RECIPES / "arithmetic/model/dense", help="the same made with --dense"
    )
    parser.add_argument("--folder", type=Path, help="where runs lie while they are measured; default: a temporary one")


def _names(value: str) -> list[str]:
    return value.split(",")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about eight minutes for a round of `countdown` with both engines."""
    for option in ("rounds", "held_out", "threads"):
        if (number := getattr(arguments, option)) < 1:
            raise InvalidInputError(f"--{option.replace('_', '-')} is {number}; it must be at least 1")
    if (stage_rounds := arguments.stage_rounds) is None:
        stage_rounds = arguments.rounds
    if not 0 <= stage_rounds <= arguments.rounds:
        raise InvalidInputError(f"--stage-rounds is {stage_rounds}; it must be from 0 to --rounds, {arguments.rounds}")
    if arguments.pin and len(os.sched_getaffinity(0)) < 2:
        raise InvalidInputError(
            "--pin gives the learner a core of its own, and this machine has one core; leave it out"
        )
    _known("--workloads", arguments.workloads, WORKLOADS)
    _known("--engines", arguments.engines, ENGINES)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as folder:
        options = Options(
            arguments.engines,
            arguments.rounds,
            arguments.seed,
            arguments.pin,
            arguments.threads,
            Path(folder),
            arguments.evaluate_from,
            stage_rounds,
        )
        return {"workloads": {name: WORKLOADS[name](arguments, options) for name in arguments.workloads}}


def _known(option: str, names: Sequence[str], known: Collection[str]) -> None:
    if not names or set(names) - set(known):
        raise InvalidInputError(f"{option} is {','.join(names)!r}; it must be some of: {', '.join(known)}")


def _countdown(arguments: argparse.Namespace, options: Options) -> dict[str, Any]:
    """The demo's recipe."""
    settings = _sizes(arguments)
    workload = Workload(
        name="countdown",
        recipe_file=_RECIPES / "countdown.toml",
        settings=settings,
        save_every=min(4, arguments.steps or 4),
        targets=(0.41, 0.42, 0.43),
        target=0.42,
        problems=arguments.held_out,
        samples=4,
    )
    return compare(workload, options)


def _arithmetic(arguments: argparse.Namespace, options: Options, *, dense: bool = False) -> dict[str, Any]:
    """The recipe of the real language model, with responses of up to 128 tokens; up to 12 in the quick form."""
    model = arguments.dense_model if dense else arguments.model
    if not (model / "config.json").is_file():
        flag, made = ("--dense-model", " --dense") if dense else ("--model", "")
        raise NotFoundError(
            f"{flag} is {model}; no config.json there: make it by `python deploy/recipes/arithmetic/make_model.py "
            f"--out {model}{made}`"
        )
    longest = 12 if arguments.quick else 128
    settings: dict[str, object] = {
        "run.model": model.absolute(),
        "rollout.max_tokens": longest,
        "generation.max_model_len": 64 + longest,
        **({"learner.algorithm": "gmpo", "generation.router_export": "none"} if dense else {}),
        **_sizes(arguments),
    }
    workload = Workload(
        name="arithmetic_dense" if dense else "arithmetic",
        recipe_file=_RECIPES / "arithmetic.toml",
        settings=settings,
        save_every=min(2, arguments.steps or 2),
        targets=(0.3, 0.4, 0.5),
        target=0.4,
        problems=min(64, arguments.held_out),
        samples=1,
        stage_steps=3,
        trl_micro_batch=_TRL_MICRO_BATCH,
    )
    return compare(workload, options)


def _sizes(arguments: argparse.Namespace) -> dict[str, object]:
    wanted = {"run.steps": arguments.steps, "run.groups_per_step": arguments.groups}
    return {name: value for name, value in wanted.items() if value is not None}


def _long_tail(arguments: argparse.Namespace, options: Options) -> dict[str, Any]:
    """Log-normal lengths; in the quick form up to 64 tokens."""
    settings = _sizes(arguments)
    if arguments.groups:
        settings["run.groups_in_flight"] = 5 * arguments.groups  # as in the recipe, whose steps have 8 groups
    if arguments.quick:
        settings["rollout.max_tokens"] = 64
    return long_tail.measure(options, settings, trl_steps=min(_TRL_STEPS, arguments.steps or _TRL_STEPS))


WORKLOADS: Mapping[str, Callable[[argparse.Namespace, Options], dict[str, Any]]] = {
    "countdown": _countdown,
    "arithmetic": _arithmetic,
    "arithmetic_dense": partial(_arithmetic, dense=True),
    "long_tail": _long_tail,
}
