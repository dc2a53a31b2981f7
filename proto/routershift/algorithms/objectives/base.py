"""What an objective is: a loss of each token from log-probs and advantages, in log space and float32.

Shapes: B responses, T tokens of the longest. The loss of a minibatch is the sum over all its tokens of token weight
times correction weight times term; see `routershift.algorithms.aggregation` for the first.

Router shift (arXiv 2510.23027) stacks on each: gamma~ multiplies the ratio before the clip, or what the clip left.

Settings read objectives where no torch is installed, so torch is imported for its types alone: what tensors need they
do by their methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from routershift.algorithms.choices import AdvantageKind, Aggregation, Application, Proximal

if TYPE_CHECKING:
    from torch import Tensor

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
    """How far a ratio, or what an objective clips in its place, may fall and rise, and where gamma~ multiplies."""

    low: float
    high: float
    apply: Application


@dataclass(frozen=True, slots=True)
class ObjectiveResult:
    """The terms of the loss, and what the clip did."""

    terms: Tensor  # [B, T], to be minimised, 0 on padding; a sequence-level one repeats on every token of its response
    clipped: Tensor  # [B, T] bool, tokens whose gradient the clip removed; in cispo, whose weight it limited


class Objective(ABC):
    """One objective: its function, the choices that its paper makes with it, and what makes no sense with it.

    `name` is what `learner.algorithm` calls it.
    """

    name: ClassVar[str]
    has_ratio: ClassVar[bool] = True  # whether the objective itself weighs tokens by pi_theta / pi_old
    is_sequence_level: ClassVar[bool] = False  # whether the tokens of a response share one ratio
    clip_low: ClassVar[float]
    clip_high: ClassVar[float]
    advantage: ClassVar[AdvantageKind] = "z_score"
    aggregation: ClassVar[Aggregation] = "response_mean"

    @abstractmethod
    def __call__(self, batch: PolicyBatch, clipping: Clipping) -> ObjectiveResult:
        """The terms of a micro-batch. Gradient flows through `batch.logprobs` alone."""

    def refusals(self, algorithm: str, clip_low: float | None, clip_high: float | None) -> list[str]:
        """Why these clip bounds make no sense, each with its fix; None is the algorithm's own choice.

        Args:
            algorithm: the name by which the user knows it.
        """
        return []

    def weighs_by_rho(self, proximal: Proximal) -> bool:
        """Whether a correction weighs what it keeps by rho: where rho is not in the objective's ratio already."""
        return proximal == "recompute" or not self.has_ratio


def below_one(algorithm: str, clip_low: float | None) -> list[str]:
    """The refusal of a lower bound of 1 - `clip_low` that no ratio can reach."""
    if clip_low is None or clip_low < 1:
        return []
    return [f"clip_low is {clip_low}; in {algorithm} it must be below 1, as a ratio is positive"]


def log_ratio_and_factor(batch: PolicyBatch, apply: Application) -> tuple[Tensor, Tensor]:
    """log of what is clipped and of what multiplies it afterwards, [B, T], both 0 where nothing counts."""
    log_ratio = batch.logprobs - batch.old_logprobs.detach()
    log_factor = log_ratio.new_zeros(log_ratio.shape)
    if batch.log_gamma is not None and apply == "before_clip":
        log_ratio = log_ratio + batch.log_gamma.detach()
    elif batch.log_gamma is not None:
        log_factor = batch.log_gamma.detach()
    ignored = ~counted(batch)
    return log_ratio.masked_fill(ignored, 0.0), log_factor.masked_fill(ignored, 0.0)


def counted(batch: PolicyBatch) -> Tensor:
    """[B, T] bool: response tokens that a correction left."""
    return batch.mask if batch.kept is None else batch.mask & batch.kept


def counted_logprobs(batch: PolicyBatch) -> Tensor:
    """[B, T]: log pi_theta, 0 without gradient where nothing counts."""
    return batch.logprobs.masked_fill(~counted(batch), 0.0)


def bounded_exp(exponent: Tensor) -> Tensor:
    """exp, of at most `MAX_EXPONENT`."""
    return exponent.clamp(max=MAX_EXPONENT).exp()


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """[B, T], 0 on padding, to [B]."""
    return values.sum(dim=1) / mask.sum(dim=1)


def on_tokens(terms: Tensor, batch: PolicyBatch) -> Tensor:
    """[B, T] or [B, 1] to [B, T], 0 on padding."""
    return terms.expand_as(batch.mask).masked_fill(~batch.mask, 0.0)
