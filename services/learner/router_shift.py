"""Router shift: how far the routers have moved, on each response token, since the token was sampled.

arXiv 2510.23027 v2, equations 5 to 9. The old scores come with the rollout, so this needs no forward pass of its
own: hooks on the routers read the live scores of the recorded experts while the loss is computed.

Shapes: R response tokens of a micro-batch, L routed layers, K experts activated per token, E experts.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.learner.settings import LayerAggregation
from shared.errors import PreconditionError
from shared.routers import FAMILIES, layout_of
from shared.trajectory import RouterLayout


def require_layout(model: PreTrainedModel) -> RouterLayout:
    """Raises PreconditionError where the model has no routers that this table knows."""
    if (layout := layout_of(model)) is not None:
        return layout
    raise PreconditionError(
        f"router shift needs a model with routers; {model.config.model_type!r} is dense or unknown. "
        f"Known families: {', '.join(FAMILIES)}. Use algorithm gmpo or grpo without router_shift for other models"
    )


@dataclass(frozen=True, slots=True)
class Routes:
    """What the behaviour policy's routers did for the R response tokens of a micro-batch."""

    rows: Tensor  # [R] int64: where each token is predicted, in the flattened [B * S] input
    expert_ids: Tensor  # [R, L, K] int32
    log_scores: Tensor  # [R, L, K] float16
    missing: Tensor  # [R] bool: the route of some layer was not recorded


@dataclass(frozen=True, slots=True)
class Shift:
    """gamma before its floor, and the shift of each layer. Nothing here carries gradient."""

    log_gamma: Tensor  # [R] float32, <= 0; exactly 0 where a route is missing
    layers: Tensor  # [L] float32: sum of d over the tokens whose routes are known


class Recording:
    """One forward pass: accumulates over layers, so that its memory grows with R + L only."""

    def __init__(self, routes: Routes, layers: int, aggregation: LayerAggregation) -> None:
        device = routes.rows.device
        self._routes = routes
        self._aggregation = aggregation
        self._log_gamma = torch.zeros(routes.rows.shape[0], device=device)
        self._layers = torch.zeros(layers, device=device)
        self._seen: set[int] = set()

    @torch.no_grad()
    def add(self, layer: int, logits: Tensor) -> None:
        """Takes the router logits [B * S, E] of a layer. Activation checkpointing gives them twice; once counts."""
        if layer in self._seen:
            return
        self._seen.add(layer)
        routes = self._routes
        distance = (live_log_scores(logits, routes, layer) - routes.log_scores[:, layer].float()).abs()
        shift = distance.mean(dim=1)
        self._layers[layer] = shift.masked_fill(routes.missing, 0.0).sum()
        if self._aggregation == "mean":
            self._log_gamma -= shift / self._layers.shape[0]
        else:
            self._log_gamma += distance.neg().exp().mean(dim=1).log()

    def result(self) -> Shift:
        return Shift(self._log_gamma.masked_fill(self._routes.missing, 0.0), self._layers)


class RouterShift:
    """Hooks on the routers of one model. They do nothing outside of `recording`.

    Args:
        routers: by index of the decoder layer, in the order of the traces' layers.
        aggregation: `mean` is the paper's gamma = exp(-mean over layers of d). `product` is that of its authors'
            code: for each layer the mean over experts of exp(-|difference|), multiplied over the layers.
    """

    def __init__(self, routers: Mapping[int, nn.Module], aggregation: LayerAggregation) -> None:
        self._aggregation = aggregation
        self._layers = len(routers)
        self._recording: Recording | None = None
        for layer, router in enumerate(routers.values()):
            router.register_forward_hook(self._hook_of(layer))

    @contextmanager
    def recording(self, routes: Routes) -> Iterator[Recording]:
        """Records the forward pass, in the body, of the micro-batch that `routes` belongs to."""
        self._recording = Recording(routes, self._layers, self._aggregation)
        try:
            yield self._recording
        finally:
            self._recording = None

    def _hook_of(self, layer: int) -> Any:
        def hook(router: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
            if self._recording is not None:
                self._recording.add(layer, output[0])

        return hook


def live_log_scores(logits: Tensor, routes: Routes, layer: int) -> Tensor:
    """log of the softmax score of the recorded experts, [R, K] float32; nothing of [R, L, E] is kept."""
    of_response = logits[routes.rows].float()
    return of_response.gather(1, routes.expert_ids[:, layer].long()) - of_response.logsumexp(dim=-1, keepdim=True)


def clip_log_gamma(log_gamma: Tensor, gamma_min: float) -> Tensor:
    """log of gamma~ = max(gamma, gamma_min) (equation 9)."""
    return log_gamma.clamp(min=math.log(gamma_min))
