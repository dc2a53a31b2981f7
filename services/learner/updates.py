"""One rank's part of a batch: its passes, forward and backward, and the optimizer updates between them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from routershift.algorithms.aggregation import Totals
from routershift.routing.expert_load import ExpertUse
from routershift.routing.hooks import Observation, Routing
from routershift.routing.shift import Shift
from services.learner.data.collate import Batch, Update
from services.learner.distributed import fsdp
from services.learner.distributed.ranks import Ranks
from services.learner.loss import Forward, Loss
from services.learner.model.optimizer import AdamW
from services.learner.model.policy import Policy, Reference
from services.learner.monitoring.diagnostics import Diagnostics
from services.learner.monitoring.kept import KeptTokens
from services.learner.settings import LearnerSettings


@dataclass(frozen=True, slots=True)
class _Before:
    """What the learner itself said of a micro-batch before the first update of the batch."""

    logprobs: Tensor  # [B, T] float32, of the proximal policy
    routes: Tensor | None  # the experts it used, for their replay (R2)


class Updater:
    """Takes the updates of batches, together with those of the other ranks."""

    def __init__(
        self,
        settings: LearnerSettings,
        ranks: Ranks,
        policy: Policy,
        optimizer: AdamW,
        loss: Loss,
        routing: Routing | None,
        reference: Reference | None,
    ) -> None:
        """
        Args:
            policy: placed on the device of this rank.
            routing: watches its routers; None: the settings want nothing of them.
            reference: the model of the start; None: the loss has no term of it.
        """
        self._settings = settings
        self._ranks = ranks
        self._policy = policy
        self._parameters = policy.parameters
        self._optimizer = optimizer
        self._loss = loss
        self._routing = routing
        self._reference = reference
        self._context = policy.attention.context
        self._reports = self._context is None or self._context.rank == 0  # what all of its ranks know of a pass

    def take(self, updates: Sequence[Update], step: int) -> tuple[dict[str, Tensor], bool]:
        """Takes those whose loss and gradient are finite. Collective.

        Args:
            updates: of one batch, with the micro-batches of this rank.
            step: batches done before.

        Returns:
            What this rank reports of the passes, for `summarise` and `kept_tokens`; and whether any update was taken.
        """
        before = [[self._look(batch) for batch in update.batches] for update in updates]
        diagnostics, keeps = Diagnostics(step), KeptTokens()
        taken = 0
        for update, known in zip(updates, before, strict=True):
            taken += self._update(update, known, diagnostics, keeps, is_unmoved=taken == 0)
        return diagnostics.tensors() | keeps.tensors(), taken > 0

    @torch.no_grad()
    def _look(self, batch: Batch) -> _Before | None:
        """The pass before the first update, where the settings want one; with the routes that the updates will have."""
        if self._settings.proximal == "behaviour":
            return None
        batch = batch.to(self._ranks.device)
        if self._routing is not None and self._settings.routing_replay == "r2":
            with self._routing.recording() as recording:
                logprobs, _ = self._policy.logprobs(batch)
            return _Before(logprobs, recording.expert_ids())
        with self._observing(batch, None, is_unmoved=False):
            return _Before(self._policy.logprobs(batch)[0], None)

    def _update(
        self,
        update: Update,
        before: Sequence[_Before | None],
        diagnostics: Diagnostics,
        keeps: KeptTokens,
        is_unmoved: bool,
    ) -> bool:
        """One optimizer update; False, and nothing changed, where loss or gradient is not finite."""
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._ranks.device)
        for batch, known in zip(update.batches, before, strict=True):
            total += self._backward(batch, update.totals, known, diagnostics, keeps, is_unmoved)
        total = self._ranks.sum(total if self._reports else torch.zeros_like(total))
        norm = fsdp.clip_gradients(self._parameters.values(), self._settings.optimizer.max_grad_norm)
        diagnostics.add_update(total, norm)
        if not torch.isfinite(total + norm):
            return False
        self._optimizer.step()
        return True

    def _backward(
        self,
        on_cpu: Batch,
        totals: Totals,
        before: _Before | None,
        diagnostics: Diagnostics,
        keeps: KeptTokens,
        is_unmoved: bool,
    ) -> Tensor:
        """Adds the gradient of a micro-batch; gives its part of the loss."""
        kept = on_cpu.kept_tokens
        batch = on_cpu.to(self._ranks.device)
        reference = self._reference.logprobs(batch) if self._reference else None
        with self._observing(batch, before, is_unmoved) as observation:
            logprobs, entropy = self._policy.logprobs(batch, entropy_gradient=self._settings.entropy_coefficient > 0)
            shift, use = self._routed(batch, observation)
            forward = Forward(logprobs, entropy, before.logprobs if before else None, reference, shift, use)
            parts = self._loss(batch, forward, totals)
            parts.loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        if self._reports:
            diagnostics.add_forward(batch, forward, parts, is_unmoved)
            if kept.numel():
                keeps.add(on_cpu, kept.to(self._ranks.device), forward, parts)
        return parts.loss.detach()

    def _routed(self, batch: Batch, observation: Observation | None) -> tuple[Shift | None, ExpertUse | None]:
        """What the routers did in a whole pass, once its forward pass is over."""
        if observation is None:
            return None, None
        shift = observation.result() if self._settings.uses_router_shift else None
        use = observation.use()
        if (context := self._context) is None or (part := batch.part) is None:
            return shift, use
        return shift and context.shift(shift, part), use and context.use(use)

    def _observing(
        self, batch: Batch, before: _Before | None, is_unmoved: bool
    ) -> AbstractContextManager[Observation | None]:
        """The routers during one forward pass and its backward pass."""
        if self._routing is None:
            return nullcontext()
        routes = batch.routes
        if routes is not None and (batch.filler or not is_unmoved):
            routes = replace(routes, lag_zero=torch.zeros_like(routes.lag_zero))
        return self._routing.observing(routes, before.routes if before else None)
