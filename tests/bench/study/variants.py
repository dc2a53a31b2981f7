"""Other definitions of gamma, which the learner does not offer, for the question whether its own is the right one.

Shapes: R response tokens of a micro-batch, L routed layers.
"""

from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from routershift.algorithms.aggregation import Totals
from routershift.routing.families import families
from routershift.routing.routers import log_scores, read, require_layout, routers_of
from routershift.routing.shift import Routes, clip_log_gamma, layer_shift
from services.learner.data.collate import Batch
from services.learner.loss import Forward, Loss, LossParts
from services.learner.settings import LearnerSettings


class Variant(StrEnum):
    """How gamma~ differs from that of arXiv 2510.23027 v2, equations 5 to 9. Layers are aggregated by their mean."""

    GRADIENT = "gradient"  # no stop-gradient: gamma~ has the value of equation 9, and is differentiated like the ratio
    BY_LAYER = "by_layer"  # each layer's own gamma has the lower bound: no layer takes more than its share of the mean


class VariedLoss(Loss):
    """The loss of the settings, with another gamma~. It does nothing before `watch`."""

    def __init__(self, settings: LearnerSettings, variant: Variant) -> None:
        super().__init__(settings)
        self._variant = variant
        self._gamma_min = settings.router_shift.gamma_min
        self._logits: list[Tensor] = []

    def watch(self, model: Any) -> None:
        """Keeps the routers' logits of each forward pass, with their gradient.

        Args:
            model: in training, a transformers model whose routers are known.
        """
        self._function = require_layout(model).score_function
        family = families()[model.config.model_type]
        routers = list(routers_of(model).values())
        self._logits = [torch.empty(0)] * len(routers)
        for layer, router in enumerate(routers):

            def keep(router: Any, inputs: Any, output: Any, layer: int = layer) -> None:
                self._logits[layer] = read(family, router, output)[0]

            router.register_forward_hook(keep)

    def __call__(self, batch: Batch, forward: Forward, totals: Totals) -> LossParts:
        if batch.routes is None or forward.shift is None:
            raise ValueError("a micro-batch has no routes; the arm must enable router shift")
        shifts = self._shifts(batch.routes)
        if self._variant is Variant.BY_LAYER:
            log_gamma = clip_log_gamma(-shifts.detach(), self._gamma_min).mean(dim=1)
            return super().__call__(batch, replace(forward, shift=replace(forward.shift, log_gamma=log_gamma)), totals)
        # Objectives differentiate log-probs alone: as part of these gamma~ is in the same place of the ratio.
        log_gamma = batch.padded(clip_log_gamma(-shifts.mean(dim=1), self._gamma_min))
        return super().__call__(batch, replace(forward, logprobs=forward.logprobs + log_gamma, shift=None), totals)

    def _shifts(self, routes: Routes) -> Tensor:
        """[R, L] float32, 0 where a route is missing."""
        layers = [
            layer_shift(
                (
                    log_scores(self._function, logits.index_select(0, routes.rows), routes.expert_ids[:, layer].long())
                    - routes.log_scores[:, layer]
                ).abs(),
                "mean",
            )
            for layer, logits in enumerate(self._logits)
        ]
        return torch.stack(layers, dim=1).masked_fill(routes.missing[:, None], 0.0)
