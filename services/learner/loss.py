"""What one micro-batch adds to the loss: the objective with everything that the settings put around it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from routershift.algorithms.aggregation import Totals, token_weights
from routershift.algorithms.choices import CORRECTION_HIGH
from routershift.algorithms.corrections import Correction, Rule, correct
from routershift.algorithms.objectives.base import Clipping, ObjectiveResult, PolicyBatch
from routershift.algorithms.regularizers import entropy_terms, kl_terms
from routershift.routing.expert_load import ExpertUse
from routershift.routing.shift import Shift, clip_log_gamma
from services.learner.data.collate import Batch
from services.learner.settings import LearnerSettings


@dataclass(frozen=True, slots=True)
class Forward:
    """What was computed of a micro-batch. Only `logprobs`, and `entropy` where it is rewarded, carry gradient."""

    logprobs: Tensor  # [B, T] float32, log pi_theta
    entropy: Tensor  # [B, T] nats
    proximal: Tensor | None  # [B, T] float32, log pi_prox, where it is recomputed
    reference: Tensor | None  # [B, T] float32, log-probs of the model of the start, where it is wanted
    shift: Shift | None
    use: ExpertUse | None = None


@dataclass(frozen=True, slots=True)
class LossParts:
    loss: Tensor  # [], the micro-batch's share of the loss of its minibatch
    result: ObjectiveResult
    correction: Correction
    reference_kl: Tensor | None  # [B, T] nats


class Loss:
    """The sum over tokens of token weight times (correction weight times objective, plus KL, minus entropy)."""

    def __init__(self, settings: LearnerSettings, weigh: Callable[[Tensor], Tensor] | None = None) -> None:
        """
        Args:
            weigh: from log gamma~ [R] of the response tokens of a micro-batch to what takes its place in the ratio, as
                a placebo does; None: nothing does.
        """
        preset = settings.preset
        self._settings = settings
        self._weigh = weigh
        self._objective = preset.objective
        self._clipping = Clipping(*settings.clip_range, settings.router_shift.apply)
        self._aggregation = settings.aggregation or preset.aggregation
        self._rule = Rule(
            kind=settings.correction.kind,
            low=settings.correction.low,
            high=settings.correction.high or CORRECTION_HIGH[settings.correction.kind],
            weighs=preset.objective.weighs_by_rho(settings.proximal),
            by_sequence=preset.objective.is_sequence_level,
        )

    def __call__(self, batch: Batch, forward: Forward, totals: Totals) -> LossParts:
        settings = self._settings
        started_from = forward.logprobs.detach() if forward.proximal is None else forward.proximal
        correction = correct(started_from - batch.behaviour_logprobs, batch.mask, self._rule)
        policy = PolicyBatch(
            logprobs=forward.logprobs,
            old_logprobs=batch.behaviour_logprobs if forward.proximal is None else forward.proximal,
            advantages=batch.advantages,
            mask=batch.mask,
            log_gamma=self._log_gamma(batch, forward.shift),
            kept=correction.kept,
        )
        result = self._objective(policy, self._clipping)
        terms = correction.weights * result.terms
        kl = None
        if forward.reference is not None:
            kl = kl_terms(forward.logprobs, forward.reference, batch.mask)
            terms = terms + settings.kl_coefficient * kl
        if settings.entropy_coefficient:
            terms = terms + settings.entropy_coefficient * entropy_terms(forward.entropy, batch.mask)
        loss = (token_weights(batch.mask, self._aggregation, totals) * terms).sum() * ~batch.filler
        return LossParts(loss, result, correction, kl)

    def _log_gamma(self, batch: Batch, shift: Shift | None) -> Tensor | None:
        """[B, T]"""
        if shift is None:
            return None
        log_gamma = clip_log_gamma(shift.log_gamma, self._settings.router_shift.gamma_min)
        return batch.padded(log_gamma if self._weigh is None else self._weigh(log_gamma))
