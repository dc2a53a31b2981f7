"""The loss of RSPO on plain tensors: the objective `gmpo`, weighed by router shift and averaged over responses."""

import torch
from torch import Tensor

from routershift.algorithms.aggregation import Totals, token_weights
from routershift.algorithms.choices import Application
from routershift.algorithms.objectives.base import Clipping, PolicyBatch
from routershift.algorithms.objectives.gmpo import Gmpo
from routershift.errors import InvalidInputError
from routershift.tensors import require_finite, require_float, require_shape


def rspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    gamma: Tensor | None = None,
    *,
    clip_low: float = Gmpo.clip_low,
    clip_high: float = Gmpo.clip_high,
    apply: Application = "before_clip",
) -> Tensor:
    """The loss of RSPO, to be minimised: minus the mean over responses of A times the geometric mean of w gamma~.

    arXiv 2510.23027 v2, equation 11: w = exp(logprobs - old_logprobs) is multiplied by gamma~ and clipped in log space;
    see `routershift.algorithms.objectives.gmpo`. The mean over B responses is theirs in the whole batch: with gradient
    accumulation, divide by the number of batches of equal size. Shapes: B responses, T tokens of the longest.

    Args:
        logprobs: [B, T] float, log pi_theta of the response tokens. Gradient flows through it alone.
        old_logprobs: [B, T] float, the same of the policy that sampled them.
        advantages: [B] float, one a response, such as those of its group.
        mask: [B, T] bool, or 0 and 1: True on response tokens. What the others hold is ignored, and a response without
            any adds 0.
        gamma: [B, T] float, gamma~ in (0, 1], from `router_shift`; None: 1, which makes this GMPO.
        clip_low: how far log(w gamma~) may fall where A < 0, above 0.
        clip_high: how far it may rise where A > 0, above 0.
        apply: before_clip as in v2 of the paper, or after_clip as in v1.

    Returns:
        [] float32.

    Raises:
        InvalidInputError: a shape, type or value that is none of these; the message names the argument.
    """
    require_float("logprobs", logprobs)
    if logprobs.dim() != 2:
        raise InvalidInputError(f"logprobs has shape {list(logprobs.shape)}; expected [B, T], one row a response")
    batch = (logprobs.shape[0],)
    for name, tensor, shape, letters in (
        ("old_logprobs", old_logprobs, logprobs.shape, "[B, T]"),
        ("advantages", advantages, batch, "[B]"),
        ("gamma", gamma, logprobs.shape, "[B, T]"),
    ):
        if tensor is not None:
            require_float(name, tensor)
            require_shape(name, tensor, shape, letters)
    require_shape("mask", mask, logprobs.shape, "[B, T]")
    for name, bound in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not bound > 0:
            raise InvalidInputError(f"{name} is {bound}; expected a number above 0")
    if apply not in ("before_clip", "after_clip"):
        raise InvalidInputError(f"apply is {apply!r}; expected before_clip or after_clip")

    counted = mask != 0
    rows = counted.any(dim=1)
    counted = counted[rows]
    policy = PolicyBatch(
        logprobs=logprobs[rows].float(),
        old_logprobs=old_logprobs[rows].float(),
        advantages=advantages[rows].float(),
        mask=counted,
        log_gamma=None if gamma is None else _log_of(gamma[rows], counted),
    )
    for name, values in (
        ("logprobs", policy.logprobs[counted]),
        ("old_logprobs", policy.old_logprobs[counted]),
        ("advantages", policy.advantages),
    ):
        require_finite(name, values)
    totals = Totals(responses=logprobs.shape[0], tokens=counted.numel(), max_response_tokens=logprobs.shape[1])
    terms = Gmpo()(policy, Clipping(clip_low, clip_high, apply)).terms
    return (token_weights(counted, Gmpo.aggregation, totals) * terms).sum()


def _log_of(gamma: Tensor, counted: Tensor) -> Tensor:
    gamma = torch.where(counted, gamma.detach().float(), 1.0)
    if not bool(((gamma > 0) & (gamma <= 1)).all()):
        raise InvalidInputError("gamma holds values outside (0, 1]; expected gamma itself, as router_shift gives it")
    return gamma.log()
