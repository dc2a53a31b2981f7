"""What the routers choose while the learner trains: the load of the experts, and how much of it the sampler chose too.

Shapes: R response tokens of a micro-batch, L routed layers, E experts, K experts activated per token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from routershift.routing.layout import RouterLayout
from routershift.routing.shift import Routes


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """Sums over the response tokens of a forward pass. Choices are the learner's own, before any replay."""

    loads: Tensor  # [L, E] float32: tokens that chose the expert
    overlaps: Tensor  # [L] float32: share of a token's recorded experts that it chose again, where routes are known


class UseMeter:
    """Measures one forward pass."""

    def __init__(self, routes: Routes, layout: RouterLayout) -> None:
        device = routes.rows.device
        self._routes = routes
        self._loads = torch.zeros(len(layout.layer_ids), layout.num_experts, device=device)
        self._overlaps = torch.zeros(len(layout.layer_ids), device=device)

    @torch.no_grad()
    def add(self, layer: int, expert_ids: Tensor) -> None:
        """Takes the chosen experts [N * W, K] of a layer, each layer once."""
        routes = self._routes
        chosen = expert_ids.index_select(0, routes.rows)
        flat = chosen.flatten().long()
        self._loads[layer].index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))
        recorded, _, stands_for = routes.of_layer(layer)
        shared = (chosen[:, :, None] == recorded[:, None, :]).any(dim=1).float().mean(dim=1)
        counted = shared if stands_for is None else shared * stands_for
        self._overlaps[layer] = counted.masked_fill(routes.missing, 0.0).sum()

    def result(self) -> ExpertUse:
        """After the forward pass."""
        return ExpertUse(self._loads, self._overlaps)


def balance(loads: Tensor) -> tuple[Tensor, Tensor]:
    """How even the loads [L, E] are, each [L].

    The load of the busiest expert over the mean: 1 where all are equal, E / K where one set takes everything. And the
    entropy of the loads over log E: 1 where all are equal.
    """
    shares = loads / loads.sum(dim=1, keepdim=True)
    experts = loads.shape[1]
    return shares.amax(dim=1) * experts, torch.special.entr(shares).sum(dim=1) / math.log(experts)
