"""What a batch did, as the trainer reports it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.learner.monitoring.kept import TrainedTokens

NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int  # batches done, this one included unless it was skipped
    skipped: str | None  # why nothing was learnt from it, such as `NON_FINITE`
    diagnostics: Mapping[str, float]
    tokens: int  # of the responses that were trained on, each once; those that were masked are left out
    flops: float  # that the updates need, recomputation and attention left out; all ranks together
    # Of each sample that was to be kept, by the index of its group and its own in it.
    kept: Mapping[tuple[int, int], TrainedTokens] = field(default_factory=dict)
