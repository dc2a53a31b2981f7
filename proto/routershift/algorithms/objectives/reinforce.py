"""REINFORCE: log-probs weighed by advantages."""

import math

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    counted_logprobs,
    log_ratio_and_factor,
)


class Reinforce(Objective):
    """A log pi, times gamma~ (arXiv 2402.14740: RLOO with leave-one-out advantages). It has no ratio to clip."""

    name = "reinforce"
    has_ratio = False
    clip_low, clip_high = math.inf, math.inf
    advantage = "leave_one_out"
    aggregation = "token_mean"

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        _, log_factor = log_ratio_and_factor(batch, "after_clip")
        terms = log_factor.exp() * batch.advantages[:, None] * counted_logprobs(batch)
        return ObjectiveResult(-terms, batch.mask.new_zeros(batch.mask.shape))

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        if clip_low is None and clip_high is None:
            return []
        return [f"clip_low and clip_high mean nothing to {algorithm}, which has no ratio; leave them out"]
