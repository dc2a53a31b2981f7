"""Terms that settings add to any objective. Shapes: B responses, T tokens of the longest."""

from torch import Tensor

from routershift.algorithms.objectives.base import MAX_EXPONENT


def kl_terms(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """KL(pi_theta || pi_ref) of each token, [B, T] nats, 0 on padding, never negative.

    The estimator pi_ref / pi_theta - 1 - log(pi_ref / pi_theta) (arXiv 2402.03300, equation 4).
    """
    log_ratio = (reference_logprobs.detach() - logprobs).masked_fill(~mask, 0.0)
    # expm1: at a small distance, exp - 1 would lose all its digits.
    return log_ratio.clamp(max=MAX_EXPONENT).expm1() - log_ratio


def entropy_terms(entropy: Tensor, mask: Tensor) -> Tensor:
    """Minus the entropy of each token's distribution, [B, T] nats, 0 on padding: minimised, it is a bonus."""
    return -entropy.masked_fill(~mask, 0.0)
