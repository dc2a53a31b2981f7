"""The routers of a model while it trains: watched for router shift, and made to choose the experts of another time.

Routing replay: R3 (arXiv 2510.11370) takes the experts that the behaviour policy used, R2 (arXiv 2507.18071)
those of the learner before its first update. Only the choice is replayed. The combine weights follow from the
live logits of the replayed experts, so the router has its gradient; but with r3_weights they are those of the behaviour
policy too, and the router has none through the tokens that are replayed.

Shapes: N rows of W tokens, R response tokens, L routed layers, K experts activated per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from routershift.errors import InvalidInputError, PreconditionError
from routershift.routing.choices import LayerAggregation, MismatchBaseline, Replay
from routershift.routing.expert_load import ExpertUse, UseMeter
from routershift.routing.families import Family, families
from routershift.routing.layout import RouterLayout
from routershift.routing.routers import log_scores, read, require_layout, reroute, routers_of
from routershift.routing.shift import Baseline, Routes, Shift, ShiftMeter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Watcher(Protocol):
    """What looks at the routers of a forward pass, and may replace what they choose."""

    def see(self, layer: int, router: nn.Module, output: Any) -> Any:
        """The forward of a router is over. What it returns takes the place of `output`; None leaves it."""


class RouterHooks:
    """Hooks on the routers of one model. They do nothing outside of `watched_by`.

    Hooks go on before the model is sharded; under FSDP2 they see plain tensors.

    Attributes:
        layout: of the routers, in the order in which `see` counts the layers.
        family: of the model.

    Raises:
        PreconditionError: the model has no routers, or its family is unknown.
    """

    layout: RouterLayout
    family: Family

    def __init__(self, model: PreTrainedModel) -> None:
        self.layout = require_layout(model)
        self.family = families()[model.config.model_type]
        self._watcher: Watcher | None = None
        routers = routers_of(model).values()
        self._handles = [router.register_forward_hook(self._hook_of(layer)) for layer, router in enumerate(routers)]

    @contextmanager
    def watched_by(self, watcher: Watcher) -> Iterator[None]:
        """Raises PreconditionError where another one watches."""
        if self._watcher is not None:
            raise PreconditionError("the routers are watched already; leave the `with` block of before first")
        self._watcher = watcher
        try:
            yield
        finally:
            self._watcher = None

    def remove(self) -> None:
        """Takes them off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook_of(self, layer: int) -> Any:
        def hook(router: nn.Module, inputs: Any, output: Any) -> Any:
            return None if self._watcher is None else self._watcher.see(layer, router, output)

        return hook


class Observation:
    """What the routers of one forward pass are compared with and made to replay."""

    def __init__(
        self,
        family: Family,
        meter: ShiftMeter | None,
        use: UseMeter | None,
        recorded: Routes | None,
        own: Tensor | None,
        replays_weights: bool,
    ) -> None:
        self._family = family
        self._replays_weights = replays_weights
        self._meter = meter
        self._use = use
        self._recorded = recorded
        self._own = own
        self._seen: set[int] = set()

    def result(self) -> Shift | None:
        """Router shift, once the forward pass is over; None where the micro-batch has no routes."""
        return None if self._meter is None else self._meter.result()

    def use(self) -> ExpertUse | None:
        """What was chosen, once the forward pass is over; None where the micro-batch has no routes."""
        return None if self._use is None else self._use.result()

    def see(self, layer: int, router: nn.Module, output: Any) -> Any:
        """A router's forward is over. Activation checkpointing runs it twice: replayed twice, measured once."""
        logits, expert_ids = read(self._family, router, output)
        if self._meter is not None and self._use is not None and layer not in self._seen:
            self._seen.add(layer)
            self._meter.add(layer, logits)
            self._use.add(layer, expert_ids)
        if self._own is not None:
            return reroute(self._family, router, output, self._own[:, layer].long())
        if self._recorded is not None:
            ids = _replaced(expert_ids, self._recorded, layer)
            scores = (
                _replaced_scores(self._family, logits, ids, self._recorded, layer) if self._replays_weights else None
            )
            return reroute(self._family, router, output, ids, scores)
        return output


class Recording:
    """The experts that a forward pass chose."""

    def __init__(self, family: Family, layout: RouterLayout) -> None:
        self._family = family
        # torch indexes with few types; one byte is enough for up to 256 experts.
        self._dtype = torch.uint8 if layout.num_experts <= 256 else torch.int32
        self._layers: list[Tensor] = []  # each [N * W, K]

    def see(self, layer: int, router: nn.Module, output: Any) -> None:
        self._layers.append(read(self._family, router, output)[1].to(self._dtype))

    def expert_ids(self) -> Tensor:
        """[N * W, L, K] uint8 up to 256 experts, else int32: every position, prompts and padding too."""
        return torch.stack(self._layers, dim=1)


class Routing:
    """The routers of a model in training. Nothing happens outside of `observing` and `recording`.

    The model must not be sharded yet, see `RouterHooks`.

    Attributes:
        layout: of the routers, in the order of the traces' layers.
        baseline: of the mismatch between engines; only fed and subtracted with `mismatch_baseline="subtract"`.

    Raises:
        PreconditionError: the model has no routers, or its family is unknown.
    """

    layout: RouterLayout
    baseline: Baseline

    def __init__(
        self,
        model: PreTrainedModel,
        aggregation: LayerAggregation = "mean",
        replay: Replay = "none",
        mismatch_baseline: MismatchBaseline = "none",
    ) -> None:
        self._hooks = RouterHooks(model)
        self.layout = self._hooks.layout
        self.baseline = Baseline(len(self.layout.layer_ids))
        self._aggregation = aggregation
        self._replay = replay
        self._subtracts = mismatch_baseline == "subtract"

    @contextmanager
    def observing(self, routes: Routes | None, own: Tensor | None = None) -> Iterator[Observation]:
        """One forward pass of a micro-batch and its backward pass, which must be in the body too.

        With activation checkpointing the layers run again in the backward pass, and must replay there too.

        Args:
            routes: of the behaviour policy. Measured wherever they are given; replayed with r3 and r3_weights,
                except where `missing`. Prompt tokens have none and route live.
            own: what `recording` gave for the same micro-batch, [N * W, L, K]; for r2, and only for it.

        Raises:
            InvalidInputError: the replay needs what was not given, or the other way round.
        """
        if (own is not None) != (self._replay == "r2"):
            given = "absent" if own is None else "given"
            raise InvalidInputError(f"own routes are {given}; routing_replay = r2, and nothing else, needs them")
        replays_recorded = self._replay in ("r3", "r3_weights")
        if replays_recorded and routes is None:
            raise InvalidInputError(
                f"router_trace is absent; routing_replay = {self._replay} needs it: generation must record routes"
            )
        if self._replay == "r3_weights" and routes is not None and routes.log_scores.dtype == torch.uint8:
            raise InvalidInputError("router_trace.log_scores is uint8; routing_replay = r3_weights needs float16")
        if replays_recorded and routes is not None and routes.layers is not None:
            raise InvalidInputError(f"router_trace has some layers; routing_replay = {self._replay} needs all")
        meter = use = None
        if routes is not None:
            baseline = self.baseline.medians if self._subtracts else None
            meter = ShiftMeter(
                routes, len(self.layout.layer_ids), self.layout.score_function, self._aggregation, baseline
            )
            use = UseMeter(routes, self.layout)
        recorded = routes if replays_recorded else None
        observation = Observation(self._hooks.family, meter, use, recorded, own, self._replay == "r3_weights")
        with self._hooks.watched_by(observation):
            yield observation
        if meter is not None and self._subtracts:
            self.baseline.add(meter.medians, meter.lag_zero_tokens)

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """One forward pass without gradient, live, whose choices `Recording.expert_ids` has afterwards."""
        recording = Recording(self._hooks.family, self.layout)
        with self._hooks.watched_by(recording):
            yield recording


def _replaced(expert_ids: Tensor, routes: Routes, layer: int) -> Tensor:
    """The live choice [N * W, K] with that of the behaviour policy where it is known."""
    live = expert_ids.index_select(0, routes.rows)
    known = torch.where(routes.missing[:, None], live, routes.expert_ids[:, layer].long())
    return expert_ids.index_copy(0, routes.rows, known)


def _replaced_scores(family: Family, logits: Tensor, expert_ids: Tensor, routes: Routes, layer: int) -> Tensor:
    """The live log-scores [N * W, K] of `expert_ids`, with those of the behaviour policy where they are known."""
    scores = log_scores(family.score_function, logits, expert_ids)
    live = scores.index_select(0, routes.rows)
    known = torch.where(routes.missing[:, None], live, routes.log_scores[:, layer].float())
    return scores.index_copy(0, routes.rows, known)
