"""Policy objectives over padded responses, in log space and float32.

Shapes: B responses, T tokens of the longest. An objective gives a loss per response, [B], because all of them
are means over responses: a batch is the mean of its responses however it was cut into micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.learner.settings import Application


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What every objective reads. Only `logprobs` carries gradient."""

    logprobs: Tensor  # [B, T] float32, log pi_theta
    behaviour_logprobs: Tensor  # [B, T] float32, log pi_old
    advantages: Tensor  # [B] float32
    mask: Tensor  # [B, T] bool, True on response tokens, at least one a row
    log_gamma: Tensor | None = None  # [B, T] float32, log of the clipped router shift factor


@dataclass(frozen=True, slots=True)
class Clipping:
    low: float
    high: float
    apply: Application


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    loss: Tensor  # [B], to be minimised
    clipped: Tensor  # [B, T] bool, tokens whose gradient the clip removed


Objective = Callable[[PolicyBatch, Clipping], ObjectiveResult]


def grpo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """Mean over tokens of min(w A, clip(w, 1 - low, 1 + high) A) (arXiv 2402.03300, equation 3, without the KL term).

    Router shift multiplies w before the clip or the clipped term after it.
    """
    advantages = batch.advantages[:, None]
    ratio = _log_ratio(batch, clipping).exp()
    limited = ratio.clamp(1 - clipping.low, 1 + clipping.high)
    terms = torch.minimum(ratio * advantages, limited * advantages)
    if clipping.apply == "after_clip" and batch.log_gamma is not None:
        terms = terms * batch.log_gamma.exp()
    clipped = batch.mask & (limited * advantages < ratio * advantages)
    return ObjectiveResult(-_mean_over_tokens(terms, batch.mask), clipped)


def gmpo(batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
    """Geometric mean of the token ratios times A, each clipped in log space (arXiv 2507.20673, equation 4).

    The paper clips sgn(A) log w, in one range for both signs, of which its minimum only ever takes the upper end.
    Clipping log w is the same for `low` equal to `high`, and lets them differ: `high` limits a rise, `low` a fall.
    With router shift this is RSPO (arXiv 2510.23027 v2, equation 11; v1 with `after_clip`).
    """
    sign = batch.advantages.sign()[:, None]
    log_ratio = _log_ratio(batch, clipping)
    signed, limited = sign * log_ratio, sign * log_ratio.clamp(-clipping.low, clipping.high)
    log_terms = sign * torch.minimum(signed, limited)
    if clipping.apply == "after_clip" and batch.log_gamma is not None:
        log_terms = log_terms + batch.log_gamma
    clipped = batch.mask & (limited < signed)
    return ObjectiveResult(-_mean_over_tokens(log_terms, batch.mask).exp() * batch.advantages, clipped)


OBJECTIVES: dict[str, Objective] = {"grpo": grpo, "gmpo": gmpo, "rspo": gmpo}


def _log_ratio(batch: PolicyBatch, clipping: Clipping) -> Tensor:
    """log w, or log of w times gamma where gamma comes before the clip; [B, T], 0 on padding."""
    log_ratio = batch.logprobs - batch.behaviour_logprobs
    if clipping.apply == "before_clip" and batch.log_gamma is not None:
        log_ratio = log_ratio + batch.log_gamma
    return log_ratio.masked_fill(~batch.mask, 0.0)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, T] to [B]."""
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)
