"""Policy objectives over padded responses, in log space and float32, and what a token's term weighs in the loss.

Shapes: B responses, T tokens of the longest. The loss of a minibatch is the sum over all its tokens of token weight
times correction weight times term. Token weights are shares of the whole minibatch, so the sum does not depend on
how it was cut into micro-batches or spread over ranks.

Router shift (arXiv 2510.23027) stacks on each: gamma~ multiplies the ratio before the clip, or what the clip left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.learner.algorithms.presets import Aggregation, Application, ObjectiveName

# exp ends at 88.7 in float32, and infinity times a zero gradient is no number. No ratio of interest is above this.
MAX_EXPONENT = 80.0


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What every objective reads. Gradient flows through `logprobs` alone, whatever the others carry."""

    logprobs: Tensor  # [B, T] float32, log pi_theta
    old_logprobs: Tensor  # [B, T] float32, denominator of the ratio: behaviour policy, or recomputed proximal policy
    advantages: Tensor  # [B] float32
    mask: Tensor  # [B, T] bool, True on response tokens, at least one a row
    log_gamma: Tensor | None = None  # [B, T] float32, log gamma~
    kept: Tensor | None = None  # [B, T] bool, what a correction left; the others count as ratio 1 without gradient


@dataclass(frozen=True, slots=True)
class Clipping:
    low: float
    high: float
    apply: Application


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    terms: Tensor  # [B, T], to be minimised, 0 on padding; a sequence-level one repeats on every token of its response
    clipped: Tensor  # [B, T] bool, tokens whose gradient the clip removed; in cispo, whose weight it limited


@dataclass(frozen=True, slots=True)
class Totals:
    """Sizes of the whole minibatch: all micro-batches of all ranks, dropped tokens included."""

    responses: int
    tokens: int
    max_response_tokens: int  # the longest response that could have been sampled


Objective = Callable[[PolicyBatch, Clipping], ObjectiveResult]


def grpo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """min(w A, clip(w, 1 - low, 1 + high) A) (arXiv 2402.03300, equation 3, without the KL term).

    Also the objective of DAPO (arXiv 2503.14476, equation 8) and Dr. GRPO (arXiv 2503.20783), which aggregate it
    differently.
    """
    advantages = batch.advantages[:, None]
    log_ratio, log_factor = _log_ratio_and_factor(batch, clipping)
    ratio = _exp(log_ratio)
    limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    terms = torch.minimum(ratio * advantages, limited * advantages) * log_factor.exp()
    return ObjectiveResult(_on_tokens(-terms, batch), limited * advantages < ratio * advantages)


def gspo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """min(s A, clip(s, 1 - low, 1 + high) A), s = exp(mean over tokens of log w) (arXiv 2507.18071, equations 5, 7).

    Router shift enters as the mean of log gamma~ over the response.
    """
    log_ratio, log_factor = _log_ratio_and_factor(batch, clipping)
    ratio = _exp(_mean_over_tokens(log_ratio, batch.mask))
    limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    values = torch.minimum(ratio * batch.advantages, limited * batch.advantages)
    values = values * _mean_over_tokens(log_factor, batch.mask).exp()
    clipped = limited * batch.advantages < ratio * batch.advantages
    return ObjectiveResult(_on_tokens(-values[:, None], batch), _counted(batch) & clipped[:, None])


def gmpo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """Geometric mean of the token ratios times A, each clipped in log space (arXiv 2507.20673, equation 4).

    The paper clips sgn(A) log w, in one range for both signs, of which its minimum only ever takes the upper end.
    Clipping log w is the same for `low` equal to `high`, and lets them differ: `high` limits a rise, `low` a fall.
    With router shift this is RSPO (arXiv 2510.23027 v2, equation 11; v1 with `after_clip`).
    """
    sign = batch.advantages.sign()[:, None]
    log_ratio, log_factor = _log_ratio_and_factor(batch, clipping)
    signed, limited = sign * log_ratio, sign * log_ratio.clamp(-clipping.low, clipping.high)
    log_terms = sign * torch.minimum(signed, limited) + log_factor
    values = _exp(_mean_over_tokens(log_terms, batch.mask)) * batch.advantages
    return ObjectiveResult(_on_tokens(-values[:, None], batch), limited < signed)


def cispo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """stop_gradient(clip(w, 1 - low, 1 + high)) A log pi (arXiv 2506.13585, equations 4 and 5).

    The clip limits the weight of a token and never takes its gradient. `low` = 1 is no lower bound, as in
    arXiv 2510.13786. The paper averages over tokens; the preset here over responses.
    """
    log_ratio, log_factor = _log_ratio_and_factor(batch, clipping)
    ratio = _exp(log_ratio.detach())
    limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    terms = limited * log_factor.exp() * batch.advantages[:, None] * _counted_logprobs(batch)
    return ObjectiveResult(-terms, limited != ratio)


def reinforce(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """A log pi, times gamma~ (arXiv 2402.14740: RLOO with leave-one-out advantages). It has no ratio to clip."""
    _, log_factor = _log_ratio_and_factor(batch, Clipping(clipping.low, clipping.high, "after_clip"))
    terms = log_factor.exp() * batch.advantages[:, None] * _counted_logprobs(batch)
    return ObjectiveResult(-terms, torch.zeros_like(batch.mask))


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "grpo": grpo,
    "gspo": gspo,
    "gmpo": gmpo,
    "cispo": cispo,
    "reinforce": reinforce,
}


def token_weights(mask: Tensor, aggregation: Aggregation, totals: Totals) -> Tensor:
    """What each token weighs in the loss, [B, T] float32, 0 on padding. N responses, |y| tokens of one.

    response_mean: 1 / (N |y|) (arXiv 2402.03300, equation 3). token_mean: 1 / sum of all |y| (DAPO, arXiv
    2503.14476, equation 8). fixed_length: 1 / (N times the longest that a response may get), so that no length is
    favoured (Dr. GRPO, arXiv 2503.20783, section 3.2).
    """
    tokens = mask.float()
    if aggregation == "response_mean":
        return tokens / (totals.responses * tokens.sum(dim=1, keepdim=True))
    if aggregation == "token_mean":
        return tokens / totals.tokens
    return tokens / (totals.responses * totals.max_response_tokens)


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


def _log_ratio_and_factor(batch: PolicyBatch, clipping: Clipping) -> tuple[Tensor, Tensor]:
    """log of what is clipped and of what multiplies it afterwards, [B, T], both 0 where nothing counts."""
    log_ratio = batch.logprobs - batch.old_logprobs.detach()
    log_factor = torch.zeros_like(log_ratio)
    if batch.log_gamma is not None and clipping.apply == "before_clip":
        log_ratio = log_ratio + batch.log_gamma.detach()
    elif batch.log_gamma is not None:
        log_factor = batch.log_gamma.detach()
    ignored = ~_counted(batch)
    return log_ratio.masked_fill(ignored, 0.0), log_factor.masked_fill(ignored, 0.0)


def _counted(batch: PolicyBatch) -> Tensor:
    return batch.mask if batch.kept is None else batch.mask & batch.kept


def _counted_logprobs(batch: PolicyBatch) -> Tensor:
    return batch.logprobs.masked_fill(~_counted(batch), 0.0)


def _exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=MAX_EXPONENT).exp()


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, T], 0 on padding, to [B]."""
    return values.sum(dim=1) / mask.sum(dim=1)


def _on_tokens(terms: Tensor, batch: PolicyBatch) -> Tensor:
    """[B, T] or [B, 1] to [B, T], 0 on padding."""
    return terms.expand_as(batch.mask).masked_fill(~batch.mask, 0.0)
