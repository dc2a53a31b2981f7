"""GSPO: one clipped ratio for each response."""

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    below_one,
    bounded_exp,
    counted,
    log_ratio_and_factor,
    mean_over_tokens,
    on_tokens,
)


class Gspo(Objective):
    """min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean over tokens of log w) (arXiv 2507.18071, equations 5, 7).

    Router shift enters as the mean of log gamma~ over the response.
    """

    name = "gspo"
    is_sequence_level = True
    clip_low, clip_high = 3e-4, 4e-4

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        log_ratio, log_factor = log_ratio_and_factor(batch, clipping.apply)
        ratio = bounded_exp(mean_over_tokens(log_ratio, batch.mask))
        limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
        values = (ratio * batch.advantages).minimum(limited * batch.advantages)
        values = values * mean_over_tokens(log_factor, batch.mask).exp()
        clipped = limited * batch.advantages < ratio * batch.advantages
        return ObjectiveResult(on_tokens(-values[:, None], batch), counted(batch) & clipped[:, None])

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        return below_one(algorithm, clip_low)
