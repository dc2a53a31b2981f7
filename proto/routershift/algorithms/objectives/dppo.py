"""DPPO: each token's ratio, masked where the probability of the token has moved too far."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from routershift.algorithms.objectives.base import (
    Clipping,
    Objective,
    ObjectiveResult,
    PolicyBatch,
    bounded_exp,
    counted,
    log_ratio_and_factor,
    on_tokens,
)

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_REST = 2.0**-23  # the step of float32 at 1: a smaller probability of all other tokens is not told from 0


class Dppo(Objective):
    """M w A, M = 0 where the update moves a token further away and it is too far already (arXiv 2602.04879).

    M is that of equation 12: 0 where A > 0, w > 1 and D > `high`, and where A < 0, w < 1 and D > `low`. D is a
    divergence of two distributions over two outcomes, the sampled token and all others; w is never clipped. Both start
    from the denominator of the ratio: the paper has the behaviour policy there.

    Router shift is not in the paper. Here gamma~ multiplies what the mask left, whatever `apply` is: D compares
    probabilities, and a ratio times gamma~ is of none.
    """

    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        advantages = batch.advantages[:, None]
        log_ratio, log_factor = log_ratio_and_factor(batch, "after_clip")
        distance = self._divergence(batch.old_logprobs.detach().clamp(max=0.0), batch.logprobs.detach().clamp(max=0.0))
        rises = (advantages > 0) & (log_ratio > 0) & (distance > clipping.high)
        falls = (advantages < 0) & (log_ratio < 0) & (distance > clipping.low)
        masked = counted(batch) & (rises | falls)
        terms = (bounded_exp(log_ratio) * advantages * log_factor.exp()).masked_fill(masked, 0.0)
        return ObjectiveResult(on_tokens(-terms, batch), masked)

    @abstractmethod
    def _divergence(self, old: Tensor, live: Tensor) -> Tensor:
        """D [B, T] of log-probs [B, T], at most 0."""


class DppoTv(Dppo):
    """D is the total variation: |pi_old - pi_theta| of the sampled token (binary TV of arXiv 2602.04879)."""

    name = "dppo"
    clip_low, clip_high = 0.15, 0.15  # of its authors' recipe; prime-rl and SkyRL have 0.2

    def _divergence(self, old: Tensor, live: Tensor) -> Tensor:
        return (live.exp() - old.exp()).abs()

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        return [
            f"{name} is {bound}; in {algorithm} it must be below 1, which no difference of probabilities exceeds"
            for name, bound in (("clip_low", clip_low), ("clip_high", clip_high))
            if bound is not None and bound >= 1
        ]


class DppoKl(Dppo):
    """D is KL(pi_old || pi_theta) over the sampled token and all others (binary KL of arXiv 2602.04879)."""

    name = "dppo_kl"
    clip_low, clip_high = 0.05, 0.05  # nats, of its authors' recipe

    def _divergence(self, old: Tensor, live: Tensor) -> Tensor:
        old_rest, live_rest = ((-logprobs.expm1()).clamp(min=_LEAST_REST) for logprobs in (old, live))
        return old.exp() * (old - live) + old_rest * (old_rest.log() - live_rest.log())
