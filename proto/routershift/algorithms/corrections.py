"""Corrections for rho, the ratio of the policy that the objective starts from to the one that sampled.

With a recomputed proximal policy rho is pi_prox / pi_behaviour, the decoupled objective of arXiv 2505.24298.
Without one it is stop_gradient(pi_theta) / pi_behaviour. Shapes: B responses, T tokens of the longest.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from routershift.algorithms.choices import CorrectionKind


@dataclass(frozen=True, slots=True)
class Rule:
    """How to correct.

    kind: none; truncate, min(rho, high) (TIS, as in arXiv 1802.01561, equation 1); mask, drop tokens with rho
        outside [low, high] (IcePop, arXiv 2510.18855); sequence_mask, drop responses with the geometric mean of rho
        outside of it.
    weighs: what is kept weighs rho. False where the objective's ratio holds rho already.
    by_sequence: the objective has one ratio a response, so what is kept weighs the geometric mean of rho.
    """

    kind: CorrectionKind
    low: float
    high: float
    weighs: bool
    by_sequence: bool


@dataclass(frozen=True, slots=True)
class Correction:
    """Nothing here carries gradient.

    A token that is not kept weighs 0. Only under a sequence-level objective does a dropped token keep the weight of
    its response: there it counts as ratio 1, and its weight is part of its response's share of the loss.
    """

    weights: Tensor  # [B, T] float32, 0 on padding
    kept: Tensor  # [B, T] bool, False on padding


def correct(log_rho: Tensor, mask: Tensor, rule: Rule) -> Correction:
    """Args: log_rho: [B, T] float32. mask: [B, T] bool, response tokens."""
    log_rho = log_rho.detach().masked_fill(~mask, 0.0)
    kept = mask
    if rule.kind == "mask":
        kept = mask & _inside(log_rho, rule)
        log_rho = log_rho.masked_fill(~kept, 0.0)
    if rule.by_sequence or rule.kind == "sequence_mask":
        log_rho = (log_rho.sum(dim=1) / mask.sum(dim=1))[:, None].expand_as(mask)
    if rule.kind == "sequence_mask":
        kept = mask & _inside(log_rho, rule)
    weighed = mask if rule.by_sequence and rule.kind == "mask" else kept
    if rule.kind == "none" or not rule.weighs:
        return Correction(weighed.to(log_rho.dtype), kept)
    # The bound takes the place of rho where it truncates, and keeps exp finite on what is dropped.
    return Correction(log_rho.clamp(max=math.log(rule.high)).exp() * weighed, kept)


def _inside(log_rho: Tensor, rule: Rule) -> Tensor:
    return (log_rho >= math.log(rule.low)) & (log_rho <= math.log(rule.high))
