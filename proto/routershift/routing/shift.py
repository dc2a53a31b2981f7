"""Router shift: how far the routers have moved, on each response token, since the token was sampled.

arXiv 2510.23027 v2, equations 5 to 9. The old scores come with the rollout, so this needs no forward pass of its
own: `routershift.routing.hooks.Routing` shows it the routers' logits while the loss is computed.

Shapes: R response tokens of a micro-batch, L routed layers, K experts activated per token, E experts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from routershift.routing.choices import LayerAggregation
from routershift.routing.layout import ScoreFunction
from routershift.routing.routers import log_scores

# What a new batch weighs in the running baseline; half of an old disagreement is forgotten after 6.6 batches.
BASELINE_RATE = 0.1
_LEAST_FACTOR = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Routes:
    """What the behaviour policy's routers did for the R response tokens of a micro-batch."""

    rows: Tensor  # [R] int64: where each token is predicted, in the flattened [N * W] input
    expert_ids: Tensor  # [R, L, K] uint8 up to 256 experts, else int32
    log_scores: Tensor  # [R, L, K] float16
    missing: Tensor  # [R] bool: the route of some layer was not recorded
    lag_zero: Tensor  # [R] bool: sampled from exactly the weights that are now in the forward pass
    traced: Tensor | None = None  # [S] int64: the response tokens, of the R, whose shift is wanted for each layer


@dataclass(frozen=True, slots=True)
class Shift:
    """gamma before its lower bound, and the shift of each layer. Nothing here carries gradient."""

    log_gamma: Tensor  # [R] float32, <= 0, less the mismatch baseline; exactly 0 where a route is missing
    measured: Tensor  # [R] float32: `log_gamma` with nothing subtracted; the same tensor where there is no baseline
    layers: Tensor  # [L] float32: sum of the layer's shift, nothing subtracted, over the tokens whose routes are known
    traced: Tensor | None  # [S, L] float32: the shift of each layer at `Routes.traced`; NaN where a route is missing


class Baseline:
    """How far the routers of two engines disagree on the same weights: no shift, and not to be taken for one.

    Per layer, the median of the shift over tokens of lag zero. A batch's value is the mean over its forward passes,
    weighted by their tokens of lag zero; over batches it is an exponential average of rate `BASELINE_RATE`.
    """

    def __init__(self, layers: int) -> None:
        self._medians = torch.full((layers,), torch.nan)
        self._passes: list[Tensor] = []  # each [L + 1]: medians times tokens, tokens

    @property
    def medians(self) -> Tensor:
        """[L] float32 on the CPU, NaN until a batch had tokens of lag zero. State, to be saved and set again."""
        return self._medians

    @medians.setter
    def medians(self, medians: Tensor) -> None:
        self._medians = medians.clone()

    def add(self, medians: Tensor, tokens: Tensor) -> None:
        """The medians [L] of a forward pass, over `tokens` [] tokens of lag zero; NaN where these are 0."""
        self._passes.append(torch.cat([medians.nan_to_num() * tokens, tokens[None]]))

    def close_batch(self, total: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        """Takes the batch's passes into the running medians; `total` sums over ranks."""
        if not self._passes:
            return
        *weighted, tokens = total(torch.stack(self._passes).sum(dim=0)).tolist()
        self._passes.clear()
        if tokens > 0:
            batch = torch.tensor(weighted) / tokens
            known = torch.where(self._medians.isnan(), batch, self._medians)
            self._medians = known.lerp(batch, BASELINE_RATE)


class ShiftMeter:
    """Measures one forward pass: accumulates over layers, so that its memory grows with R + L only.

    A layer's shift s is that of `aggregation`:
        mean: s = d, the mean over experts of |difference of log-scores|, and gamma = exp(-mean over layers of s):
            equations 5 to 7 of the paper.
        product: s = -log of the mean over experts of exp(-|difference|), at most 87.3, and gamma = exp(-sum over layers
            of s): the code of its authors.
    With a baseline b [L], max(s - b, 0) stands for s in gamma.
    """

    def __init__(
        self,
        routes: Routes,
        layers: int,
        function: ScoreFunction,
        aggregation: LayerAggregation,
        baseline: Tensor | None = None,
    ) -> None:
        device = routes.rows.device
        self._routes = routes
        self._function = function
        self._aggregation = aggregation
        self._baseline = None if baseline is None else baseline.to(device)
        self._measured = torch.zeros(routes.rows.shape[0], device=device)
        self._corrected = self._measured if baseline is None else torch.zeros_like(self._measured)
        self._layers = torch.zeros(layers, device=device)
        self._medians = torch.full((layers,), torch.nan, device=device)
        traced = routes.traced
        self._traced = None if traced is None else torch.zeros((layers, traced.shape[0]), device=device)

    @torch.no_grad()
    def add(self, layer: int, logits: Tensor) -> None:
        """Takes the router logits [N * W, E] of a layer, each layer once."""
        routes = self._routes
        live = log_scores(self._function, logits.index_select(0, routes.rows), routes.expert_ids[:, layer].long())
        distance = live.sub_(routes.log_scores[:, layer]).abs_()
        if self._aggregation == "mean":
            shift = distance.mean(dim=1)
        else:  # bounded: scores very far apart would leave nothing of the mean, and no logarithm
            shift = distance.neg_().exp_().mean(dim=1).clamp_(min=_LEAST_FACTOR).log_().neg_()
        if self._traced is not None and routes.traced is not None:
            self._traced[layer] = shift.index_select(0, routes.traced)
        self._layers[layer] = shift.masked_fill(routes.missing, 0.0).sum()
        self._measured -= shift
        if self._baseline is not None:
            self._medians[layer] = shift.masked_fill(~routes.lag_zero | routes.missing, torch.nan).nanmedian()
            self._corrected -= (shift - self._baseline[layer].nan_to_num()).clamp_(min=0.0)

    @property
    def medians(self) -> Tensor:
        """[L] of the shift over tokens of lag zero; NaN where there are none. Only measured with a baseline."""
        return self._medians

    @property
    def lag_zero_tokens(self) -> Tensor:
        """[] float32: tokens of lag zero whose routes are known."""
        return (self._routes.lag_zero & ~self._routes.missing).sum().float()

    def result(self) -> Shift:
        """After the forward pass."""
        measured = self._log_gamma(self._measured)
        corrected = measured if self._baseline is None else self._log_gamma(self._corrected)
        return Shift(corrected, measured, self._layers, self._of_each_layer())

    def _of_each_layer(self) -> Tensor | None:
        """[S, L]"""
        if self._traced is None or self._routes.traced is None:
            return None
        missing = self._routes.missing.index_select(0, self._routes.traced)
        return self._traced.masked_fill(missing, torch.nan).T

    def _log_gamma(self, total: Tensor) -> Tensor:
        scale = self._layers.shape[0] if self._aggregation == "mean" else 1
        return (total / scale).masked_fill(self._routes.missing, 0.0)


def clip_log_gamma(log_gamma: Tensor, gamma_min: float) -> Tensor:
    """log of gamma~ = max(gamma, gamma_min) (equation 9)."""
    return log_gamma.clamp(min=math.log(gamma_min))
