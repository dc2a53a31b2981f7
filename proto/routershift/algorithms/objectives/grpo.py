"""GRPO: each token's ratio, clipped."""

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    below_one,
    bounded_exp,
    log_ratio_and_factor,
    on_tokens,
)


class Grpo(Objective):
    """min(w A, clip(w, 1 - low, 1 + high) A) (arXiv 2402.03300, equation 3, without the KL term).

    Also the objective of DAPO (arXiv 2503.14476, equation 8) and Dr. GRPO (arXiv 2503.20783), which aggregate it
    differently.
    """

    name = "grpo"
    clip_low, clip_high = 0.2, 0.2

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        advantages = batch.advantages[:, None]
        log_ratio, log_factor = log_ratio_and_factor(batch, clipping.apply)
        ratio = bounded_exp(log_ratio)
        limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
        terms = (ratio * advantages).minimum(limited * advantages) * log_factor.exp()
        return ObjectiveResult(on_tokens(-terms, batch), limited * advantages < ratio * advantages)

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        return below_one(algorithm, clip_low)
