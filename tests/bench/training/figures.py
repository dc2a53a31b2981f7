"""What one training run of any side gives, and what is compared of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.timing import Spread


@dataclass(frozen=True, slots=True)
class Saved:
    """Weights after a step."""

    step: int
    seconds: float  # of training until then; time of evaluation and of saving is left out
    files: tuple[Path, ...]  # safetensors


@dataclass(frozen=True, slots=True)
class Training:
    """One run from its first prompt to its last step."""

    seconds: float
    rollouts: int  # trained on or dropped by then
    trained_rollouts: int  # of groups with unequal rewards: the others move no weight, whoever computes them
    tokens: int  # response tokens sampled
    cpu_seconds: float  # user and system time of all processes concerned
    saved: Sequence[Saved] = ()
    where: Mapping[str, Any] = field(default_factory=dict)  # where the time goes

    def rates(self) -> dict[str, float]:
        """Figures of this run."""
        return {
            "rollouts_per_second": self.rollouts / self.seconds,
            "trained_rollouts_per_second": self.trained_rollouts / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "cpu_seconds_per_rollout": self.cpu_seconds / max(self.rollouts, 1),
            "cpu_seconds_per_trained_rollout": self.cpu_seconds / max(self.trained_rollouts, 1),
        }


@dataclass(frozen=True, slots=True)
class Point:
    """A version on the way of a run."""

    step: int
    seconds: float
    accuracy: float


def seconds_to(accuracy: float, curve: Sequence[Point]) -> float | None:
    """Training time of the first version that was evaluated at this accuracy or more; None: none was."""
    return next((point.seconds for point in curve if point.accuracy >= accuracy), None)


def paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, float] | None:
    """The spread of ours over theirs within each round; rounds in which one of both has no value are left out."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b]
    if not ratios:
        return None
    spread = Spread.of(ratios)
    return {"median": spread.median, "min": spread.min, "max": spread.max, "rounds": len(ratios)}
