"""Other weights of tokens by their routers, which the learner does not offer.

Two are ablations of gamma, and ask whether its own definition is the right one.

Shapes: B responses, T tokens of the longest, R response tokens of a micro-batch, L routed layers, K experts activated
per token, E experts.
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
    """What takes the place of gamma~ of arXiv 2510.23027 v2, equations 5 to 9, with the mean over layers."""

    GRADIENT = "gradient"  # no stop-gradient: gamma~ has the value of equation 9, and is differentiated like the ratio
    BY_LAYER = "by_layer"  # each layer's own gamma has the lower bound: no layer takes more than its share of the mean
    EXPERT_RATIO = "expert_ratio"  # ratios of experts in place of those of tokens, see `expert_log_ratios`


class VariedLoss(Loss):
    """The loss of the settings, with another weight of tokens. It does nothing before `watch`."""

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
        if self._variant is Variant.EXPERT_RATIO:
            ratios = (forward.logprobs - batch.behaviour_logprobs)[batch.mask]
            responses = batch.mask.nonzero()[:, 0]
            grouped = batch.padded(expert_log_ratios(ratios, responses, batch.routes))
            return super().__call__(batch, replace(forward, logprobs=batch.behaviour_logprobs + grouped), totals)
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


def expert_log_ratios(log_ratios: Tensor, responses: Tensor, routes: Routes) -> Tensor:
    """The ratios of the experts that a token used, in place of its own: their mean over experts and layers.

    The ratio of an expert is the mean over the tokens of one response that the sampler routed to it, as GSPO's is over
    the whole response (arXiv 2507.18071, equation 7); all in logarithms. This is our reading of the abstract of ERPO
    (Expert Relative Policy Optimization, ACL 2026), which groups tokens by their routing assignments; its text was not
    to be had, and its entropy reward is not here.

    Args:
        log_ratios: [R] float32; gradient flows through them.
        responses: [R] int64, of which response a token is.

    Returns:
        [R] float32; a token whose route is missing keeps its own.
    """
    experts = int(routes.expert_ids.max()) + 1
    groups = (responses[:, None, None] * experts + routes.expert_ids.long()).masked_fill(
        routes.missing[:, None, None], (int(responses.max()) + 1) * experts
    )
    grouped = []
    for layer in groups.unbind(dim=1):  # [R, K]
        size = int(layer.max()) + 1
        spread = log_ratios[:, None].expand(layer.shape).flatten()
        sums = log_ratios.new_zeros(size).index_add(0, layer.flatten(), spread)
        counts = torch.bincount(layer.flatten(), minlength=size)
        grouped.append((sums / counts.clamp(min=1))[layer].mean(dim=1))
    return torch.where(routes.missing, log_ratios, torch.stack(grouped, dim=1).mean(dim=1))
