"""CISPO: log-probs, weighed by clipped ratios without gradient."""

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    bounded_exp,
    counted_logprobs,
    log_ratio_and_factor,
)


class Cispo(Objective):
    """stop_gradient(clip(w, 1 - low, 1 + high)) A log pi (arXiv 2506.13585, equations 4 and 5).

    The clip limits the weight of a token and never takes its gradient. `low` = 1 is no lower bound, as in
    arXiv 2510.13786. The paper averages over tokens; the preset here over responses.
    """

    name = "cispo"
    clip_low, clip_high = 1.0, 4.0  # arXiv 2506.13585, 2510.13786

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        log_ratio, log_factor = log_ratio_and_factor(batch, clipping.apply)
        ratio = bounded_exp(log_ratio.detach())
        limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
        terms = limited * log_factor.exp() * batch.advantages[:, None] * counted_logprobs(batch)
        return ObjectiveResult(-terms, limited != ratio)

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        if clip_low is None or clip_low <= 1:
            return []
        return [f"clip_low is {clip_low}; in {algorithm} 1 is already no lower bound, as a ratio is positive"]
