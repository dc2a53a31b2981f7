"""What a batch did, as the trainer reports it."""

from collections.abc import Mapping
from dataclasses import dataclass

NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int  # batches done, this one included unless it was skipped
    skipped: str | None  # why nothing was learnt from it, such as `NON_FINITE`
    diagnostics: Mapping[str, float]
    flops: float  # that the updates need, recomputation and attention left out; all ranks together
