"""One run of the study through all services: `routershift run`, in which a lag comes about by timing.

The lag of a cell is the most that a run allows, and the sampler's weights are as new as it gets them. So the same seed
gives another run each time, and what the two ways have in common is the condition alone.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.cli.commands.bench import REPOSITORY
from shared.errors import InvalidInputError
from shared.tracking import records
from tests.bench.study.cells import CORRECTIONS, Arm, Cell, arm_of
from tests.bench.study.outcomes import Evaluation
from tests.bench.study.runs import Protocol, kept
from tests.bench.training import ours

RECIPE = REPOSITORY / "deploy" / "recipes" / "countdown.toml"


def require_services(cells: list[Cell]) -> None:
    """Raises InvalidInputError for an arm that is more than settings of the learner: no service has it."""
    for cell in cells:
        if not _is_settings(arm_of(cell.correction)):
            known = [name for name, arm in CORRECTIONS.items() if _is_settings(arm)]
            raise InvalidInputError(
                f"{cell.arm} is no arm of the services, which have no placebos, variants or sampler in bfloat16; leave "
                f"out --services, or take a correction of {', '.join(known)}"
            )


def run(cell: Cell, seed: int, protocol: Protocol) -> dict[str, Any]:
    """Trains to the end; gives evaluations and diagnostics as `tests.bench.study.runs.run` does.

    Its rewards are those of the groups that were trained on, and evaluations before the last one are answered by
    several versions, since training goes on.

    Raises:
        UnavailableError: the run failed; its last lines are on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="study-") as parent:
        folder = Path(parent) / "run"
        with ours.running(RECIPE, settings(cell, seed, protocol) | ours.place(folder), folder) as process:
            if process.wait():  # it has deadlines of its own for all that may stand still
                raise ours.failed(process, folder)
        steps = records.steps(folder / records.LEARNER)
        return {
            "evaluations": [_evaluation(record).as_json() for record in records.read(folder / records.EVALUATIONS)],
            "batches": [{"reward": step["reward_mean"], "groups": protocol.groups} | kept(step) for step in steps],
        }


def settings(cell: Cell, seed: int, protocol: Protocol) -> dict[str, object]:
    """What the demo's recipe has otherwise in this cell, by name; values as --set takes them."""
    return {
        "generation.engine": "torch",
        "run.model": protocol.model.resolve(),
        "run.seed": seed,
        "run.steps": protocol.steps,
        "run.groups_per_step": protocol.groups,
        "run.max_staleness": cell.staleness,
        "run.evaluate_every": protocol.every,
        "rollout.n": protocol.samples,
        "rollout.max_tokens": protocol.max_tokens,
        "curriculum.evaluation.problems": protocol.held_out,
        "curriculum.evaluation.sampling.n": 4,
        **dict(_flat("learner", protocol.learner(cell))),
    }


def _is_settings(arm: Arm) -> bool:
    return arm.placebo is None and arm.variant is None and arm.replay_above is None and not arm.sampler_bfloat16


def _flat(name: str, value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, str(value).lower() if isinstance(value, bool) else value


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        record["version"],
        pass_at_1=record["accuracy"],
        pass_at_4=record["pass_at_k"]["4"],
        greedy=record["greedy_accuracy"],
    )
