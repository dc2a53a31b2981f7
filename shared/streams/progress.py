"""How far a run has come: the one home of the names of these fields in Redis."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_ACCURACIES = 64  # versions whose accuracy is remembered, the best ones


@dataclass(frozen=True, slots=True)
class Progress:
    """Written by the learner and the curriculum, each its own part; None for what nobody has reported yet.

    admit.lua knows `prompts`, `selection` and `phase`.
    """

    format: int | None = None  # of what the run has in Redis: see `Run.claim_format`
    # The learner's.
    step: int | None = None  # optimizer steps done
    version: int | None = None  # of the weights published last
    total_steps: int | None = None
    phase: str | None = None  # TRAINING, PAUSED or FINISHED of `shared.streams.run`
    activity: str | None = None  # "training" while a step is being computed, else "waiting"
    collected: int | None = None  # groups that the learner has for its next step
    end: str | None = None  # why the learner has finished, in words; "" while it has not
    # The curriculum's.
    prompts: int | None = None  # index of the prompt to admit next
    selection: Mapping[str, Any] | None = None  # strategy, turns in the order of problems, and choices by kind
    evaluating_version: int | None = None
    evaluated_problems: int | None = None  # of the evaluation in progress
    evaluated_version: int | None = None
    held_out: Mapping[str, Any] | None = None  # the last evaluation of every held-out set, by its name
    accuracy: float | None = None  # the last of the main set, sampled
    greedy_accuracy: float | None = None
    best_version: int | None = None
    best_accuracy: float | None = None
    accuracies: Mapping[str, float] | None = None  # on the main set, of the best versions, by version
    final_evaluation: int | None = None  # version after whose evaluation nothing more comes

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> "Progress":
        """From the hash in Redis."""
        return cls(**{name: _TYPES[name](value) for name, value in fields.items() if name in _TYPES})

    def as_fields(self) -> dict[str, Any]:
        """As the hash in Redis has them: a mapping is JSON."""
        return {
            name: json.dumps(value) if isinstance(value, Mapping) else value for name, value in self.as_record().items()
        }

    def as_record(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def with_accuracy(self, version: int, accuracy: float) -> dict[str, float]:
        """`accuracies` with one more version: the best that there is room for, of equals the earliest."""
        known = {**(self.accuracies or {}), str(version): accuracy}
        return {each: known[each] for each in sorted(known, key=lambda v: (-known[v], int(v)))[:MOST_ACCURACIES]}


_TYPES: dict[str, Any] = dict.fromkeys(Progress.__dataclass_fields__, int) | {
    "phase": str, "activity": str, "accuracy": float, "greedy_accuracy": float, "best_accuracy": float,
    "held_out": json.loads, "accuracies": json.loads, "end": str,
    "selection": json.loads,
}  # fmt: skip
