"""GMPO: the geometric mean of a response's ratios, each clipped in log space."""

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    bounded_exp,
    log_ratio_and_factor,
    mean_over_tokens,
    on_tokens,
)


class Gmpo(Objective):
    """Geometric mean of the token ratios times A, each clipped in log space (arXiv 2507.20673, equation 4).

    The paper clips sgn(A) log w, in one range for both signs, of which its minimum only ever takes the upper end.
    Clipping log w is the same for `low` equal to `high`, and lets them differ: `high` limits a rise, `low` a fall.
    With router shift this is RSPO (arXiv 2510.23027 v2, equation 11; v1 with `after_clip`).
    """

    name = "gmpo"
    is_sequence_level = True
    clip_low, clip_high = 0.4, 0.4  # of the logarithm of the ratio

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        sign = batch.advantages.sign()[:, None]
        log_ratio, log_factor = log_ratio_and_factor(batch, clipping.apply)
        signed, limited = sign * log_ratio, sign * log_ratio.clamp(-clipping.low, clipping.high)
        log_terms = sign * signed.minimum(limited) + log_factor
        values = bounded_exp(mean_over_tokens(log_terms, batch.mask)) * batch.advantages
        return ObjectiveResult(on_tokens(-values[:, None], batch), limited < signed)
