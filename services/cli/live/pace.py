"""How fast a run goes, by the records of its last steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEPS = 20  # that an estimate looks back


@dataclass(frozen=True, slots=True)
class Pace:
    """Rates over the last steps. What a restart took between two of them does not count."""

    seconds_per_step: float  # of the wall clock, waiting included
    tokens_per_second: float  # response tokens trained on
    trajectories_per_second: float  # trained on

    def remaining_seconds(self, step: int, steps: int) -> float:
        """How long the steps that are left take at this pace; 0 where none are."""
        return max(0, steps - step) * self.seconds_per_step


def pace(records: Sequence[Mapping[str, Any]]) -> Pace | None:
    """The pace of the last `STEPS` steps; None before the first.

    The slowest of three or more is left out: the first step of a start waits for an evaluation, and one may have waited
    for a person who paused the learner.

    Args:
        records: of the learner, oldest first.
    """
    timed = [(sum((record.get("seconds") or {}).values()), record) for record in records[-STEPS:]]
    timed = sorted(((seconds, record) for seconds, record in timed if seconds > 0), key=lambda one: one[0])
    if len(timed) >= 3:
        timed.pop()
    if not timed:
        return None
    total: float = sum(seconds for seconds, _ in timed)

    def per_second(field: str) -> float:
        return sum(float(record.get(field) or 0) for _, record in timed) / total

    return Pace(total / len(timed), per_second("tokens"), per_second("trajectories"))
