"""Router shift: how far the routers have moved, on each response token, since the token was sampled.

arXiv 2510.23027 v2, equations 5 to 9. The old scores come with the rollout, so this needs no forward pass of its
own: `routershift.routing.hooks.Routing` shows it the routers' logits while the loss is computed.

Shapes: R response tokens of a micro-batch, L routed layers, K experts activated per token, E experts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from routershift.errors import InvalidInputError
from routershift.routing import score_code
from routershift.routing.choices import LayerAggregation
from routershift.routing.layout import ScoreFunction
from routershift.routing.routers import log_scores as log_scores_of
from routershift.tensors import require_float, require_shape

# What a new batch weighs in the running baseline; half of an old disagreement is forgotten after 6.6 batches.
BASELINE_RATE = 0.1
_LEAST_FACTOR = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Routes:
    """What the behaviour policy's routers did for the R response tokens of a micro-batch."""

    rows: Tensor  # [R] int64: where each token is predicted, in the flattened [N * W] input
    # With `layers`, L is the most layers that a token has, in these two.
    expert_ids: Tensor  # [R, L, K] uint8 up to 256 experts, else int32
    log_scores: Tensor  # [R, L, K] float16, or uint8 codes of `routershift.routing.score_code`
    missing: Tensor  # [R] bool: the route of some layer was not recorded
    lag_zero: Tensor  # [R] bool: sampled from exactly the weights that are now in the forward pass
    traced: Tensor | None = None  # [S] int64: the response tokens, of the R, whose shift is wanted for each layer
    layers: Tensor | None = None  # [R, M] uint8: the layers that each token has, else `NO_LAYER`; None: all, in order
    stands_for: Tensor | None = None  # [R, M] uint8: for how many layers each of these stands; 0 where there is none

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """What tokens have of a layer.

        Returns:
            expert_ids [R, K]; log_scores [R, K]; and for how many layers this one stands [R] float32, None: each for 1.
            Where that is 0 the token does not have the layer, and ids and scores are another's.
        """
        if self.layers is None or self.stands_for is None:
            return self.expert_ids[:, layer], self.log_scores[:, layer], None
        here = self.layers == layer
        rows, places = torch.arange(here.shape[0], device=here.device), here.int().argmax(dim=1)
        return self.expert_ids[rows, places], self.log_scores[rows, places], (here * self.stands_for).sum(dim=1).float()


@dataclass(frozen=True, slots=True)
class Shift:
    """gamma before its lower bound, and the shift of each layer. Nothing here carries gradient."""

    log_gamma: Tensor  # [R] float32, <= 0, less the mismatch baseline; exactly 0 where a route is missing
    measured: Tensor  # [R] float32: `log_gamma` with nothing subtracted; the same tensor where there is no baseline
    # [L] float32: sum of the layer's shift, nothing subtracted, over the tokens whose routes are known; an unbiased
    # estimate of it where tokens have some layers.
    layers: Tensor
    # [S, L] float32: the shift of each layer at `Routes.traced`; NaN where a route is missing, or the token has it not.
    traced: Tensor | None


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
        expert_ids, recorded, stands_for = routes.of_layer(layer)
        live = log_scores_of(self._function, logits.index_select(0, routes.rows), expert_ids.long())
        shift = layer_shift(_distance(live, recorded), self._aggregation)
        weight, known = (1.0, shift) if stands_for is None else (stands_for, _where(stands_for > 0, shift))
        if self._traced is not None and routes.traced is not None:
            self._traced[layer] = known.index_select(0, routes.traced)
        self._layers[layer] = (shift * weight).masked_fill(routes.missing, 0.0).sum()
        self._measured -= shift * weight
        if self._baseline is not None:
            self._medians[layer] = known.masked_fill(~routes.lag_zero | routes.missing, torch.nan).nanmedian()
            self._corrected -= (shift - self._baseline[layer].nan_to_num()).clamp_(min=0.0) * weight

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
        layers = _layers_in_mean(self._layers.shape[0], self._aggregation)
        return (total / layers).masked_fill(self._routes.missing, 0.0)


def router_shift(
    log_scores: Tensor,
    old_log_scores: Tensor,
    *,
    missing: Tensor | None = None,
    gamma_min: float = 0.8,
    layer_aggregation: LayerAggregation = "mean",
) -> Tensor:
    """gamma~, how little the routers have moved on each token since it was sampled: 1 where not at all.

    arXiv 2510.23027 v2, equations 5 to 9. Both scores are of the experts that the policy activated which sampled the
    token. Shapes: B responses, T tokens of the longest, L routed layers, K experts activated per token.

    Args:
        log_scores: [B, T, L, K] float, natural log of what the routers of the policy in training give these experts.
        old_log_scores: [B, T, L, K] float, the same of the policy that sampled.
        missing: [B, T] bool, tokens some of whose routes were not recorded: they take 1. None: there are none.
        gamma_min: lower bound of gamma~, in (0, 1].
        layer_aggregation: mean is the paper's; product is the code of its authors, whose gamma falls faster.

    Returns:
        [B, T] float32 in [gamma_min, 1], without gradient. Padding has a value too, which a mask must hide.

    Raises:
        InvalidInputError: a shape, type or value that is none of these; the message names the argument.
    """
    for name, scores in (("log_scores", log_scores), ("old_log_scores", old_log_scores)):
        require_float(name, scores)
    if log_scores.dim() != 4 or 0 in log_scores.shape[2:]:
        raise InvalidInputError(
            f"log_scores has shape {list(log_scores.shape)}; expected [B, T, L, K]: responses, tokens, layers, experts"
        )
    require_shape("old_log_scores", old_log_scores, log_scores.shape, "[B, T, L, K]")
    if not 0 < gamma_min <= 1:
        raise InvalidInputError(f"gamma_min is {gamma_min}; expected a number above 0 and at most 1")
    if layer_aggregation not in get_args(LayerAggregation):
        raise InvalidInputError(f"layer_aggregation is {layer_aggregation!r}; expected mean or product")
    with torch.no_grad():
        distance = (log_scores.float() - old_log_scores.float()).abs()
        if missing is not None:
            require_shape("missing", missing, log_scores.shape[:2], "[B, T]")
            distance = distance.masked_fill((missing != 0)[:, :, None, None], 0.0)
        if not bool(distance.isfinite().all()):
            raise InvalidInputError(
                "log_scores or old_log_scores is not finite; mark the tokens whose routes are unknown by `missing`"
            )
        total = -layer_shift(distance, layer_aggregation).sum(dim=2)
        log_gamma = total / _layers_in_mean(log_scores.shape[2], layer_aggregation)
        return clip_log_gamma(log_gamma, gamma_min).exp()


def layer_shift(distance: Tensor, aggregation: LayerAggregation) -> Tensor:
    """The shift s [...] of layers from |difference of log-scores| [..., K] float32, which is overwritten.

    See `ShiftMeter` for its definition.
    """
    if aggregation == "mean":
        return distance.mean(dim=-1)
    # Bounded: scores very far apart would leave nothing of the mean, and no logarithm.
    return distance.neg_().exp_().mean(dim=-1).clamp_(min=_LEAST_FACTOR).log_().neg_()


def _where(known: Tensor, values: Tensor) -> Tensor:
    """The values, NaN where they are not known."""
    return values.masked_fill(~known, torch.nan)


def _distance(live: Tensor, recorded: Tensor) -> Tensor:
    """How far live scores [..., K] float32, which are overwritten, are from those recorded: between codes, if coded."""
    if recorded.dtype != torch.uint8:
        return live.sub_(recorded).abs_()
    rounded = live.half().float()  # as the sampler's were before they were coded
    codes = rounded.neg_().clamp_(min=0).sqrt_().mul_(score_code.STEPS).round_().clamp_(max=score_code.LAST)
    return codes.square_().sub_(recorded.float().square_()).abs_().div_(score_code.STEPS**2)


def _layers_in_mean(layers: int, aggregation: LayerAggregation) -> int:
    """What the sum of the shifts of L layers is divided by."""
    return layers if aggregation == "mean" else 1


def clip_log_gamma(log_gamma: Tensor, gamma_min: float) -> Tensor:
    """log of gamma~ = max(gamma, gamma_min) (equation 9)."""
    return log_gamma.clamp(min=math.log(gamma_min))
