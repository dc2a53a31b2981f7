"""Whole training runs: by us asynchronously and synchronously, and by TRL's GRPOTrainer, in turns.

docs/benchmarks.md says what each figure means and how it is measured.
"""

import argparse
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError
from tests.bench.training import long_tail
from tests.bench.training.comparison import Options, Workload, compare
from tests.bench.training.ours import REPOSITORY

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
    parser.add_argument("--seed", type=int, default=0, help="of the first round; each has the next")
    parser.add_argument("--threads", type=int, default=2, help="of TRL; ours has one in the learner, one in generation")
    parser.add_argument("--pin", action="store_true", help="give the learner core 0 to itself, and the others the rest")
    parser.add_argument("--folder", type=Path, help="where runs lie while they are measured; default: a temporary one")


def _names(value: str) -> list[str]:
    return value.split(",")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about eight minutes for a round of `countdown` with both engines."""
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


def _sizes(arguments: argparse.Namespace) -> dict[str, object]:
    wanted = {"run.steps": arguments.steps, "run.groups_per_step": arguments.groups}
    return {name: value for name, value in wanted.items() if value is not None}


def _long_tail(arguments: argparse.Namespace, options: Options) -> dict[str, Any]:
    """Log-normal lengths; in the quick form up to 64 tokens."""
    settings: dict[str, object] = _sizes(arguments)
    if arguments.quick:
        settings["rollout.max_tokens"] = 64
    return long_tail.measure(options, settings, trl_steps=min(_TRL_STEPS, arguments.steps or _TRL_STEPS))


WORKLOADS: Mapping[str, Callable[[argparse.Namespace, Options], dict[str, Any]]] = {
    "countdown": _countdown,
    "long_tail": _long_tail,
}
