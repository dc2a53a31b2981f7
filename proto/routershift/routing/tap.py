"""Records what the routers of a model chose, and how they scored it, while the model runs.

Shapes: B rows of W positions, T positions that are recorded, L routed layers, K experts activated per token, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from routershift.errors import InvalidInputError, PreconditionError
from routershift.routing.hooks import RouterHooks
from routershift.routing.routers import decoder_layers, log_scores, read

if TYPE_CHECKING:
    from routershift.routing.families import Family
    from routershift.routing.layout import RouterLayout

_WHOLE = slice(None)


class RouterTap:
    """Hooks on the routers of one model, which record inside of `record` and do nothing elsewhere.

    The model is one of transformers, of a family in `routershift.routing.families`; a wrapper of PEFT or of
    DistributedDataParallel is looked into. Put the tap on before the model is sharded.

    Attributes:
        layout: which layers have routers, E, K, and how the routers score.

    Raises:
        PreconditionError: the model has no routers, or its family is unknown.
        InvalidInputError: the model is none of transformers.
    """

    layout: RouterLayout

    def __init__(self, model: nn.Module) -> None:
        inside = _unwrapped(model)
        self._hooks = RouterHooks(inside)
        self.layout = self._hooks.layout
        self._record: RouterRecord | None = None
        # Routers see rows and positions as one dimension; the layers before them still have both.
        self._first = decoder_layers(inside)[0].register_forward_pre_hook(self._begin, with_kwargs=True)

    @contextmanager
    def record(self, expert_ids: Tensor | None = None, positions: slice = _WHOLE) -> Iterator[RouterRecord]:
        """One forward pass, whose routers the record has as soon as it is over; the model computes as ever.

        The scores of position i are of the token that is predicted there, as its logits are: of the token at i + 1. So
        with T response tokens at the end of each row, `positions=slice(-T - 1, -1)` records theirs.

        Args:
            expert_ids: [B, T, L, K] integer, experts whose scores are wanted, such as those that the policy activated
                that sampled; None: those that the routers choose now.
            positions: which of the W positions of each row are recorded.

        Raises:
            InvalidInputError: `expert_ids` does not fit the model, here, or the forward pass, there.
            PreconditionError: the tap records already.
        """
        if expert_ids is not None:
            self._check(expert_ids)
        record = RouterRecord(self._hooks.family, self.layout, expert_ids, positions)
        with self._hooks.watched_by(record):
            self._record = record
            try:
                yield record
            finally:
                self._record = None

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._hooks.remove()
        self._first.remove()

    def _begin(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._record is not None:
            hidden: Tensor = inputs[0] if inputs else named["hidden_states"]
            self._record.begin(hidden.shape[0])

    def _check(self, expert_ids: Tensor) -> None:
        layers, chosen, experts = len(self.layout.layer_ids), self.layout.top_k, self.layout.num_experts
        if expert_ids.is_floating_point() or expert_ids.dtype is torch.bool:
            raise InvalidInputError(f"expert_ids is of type {expert_ids.dtype}; expected an integer type")
        if expert_ids.dim() != 4 or tuple(expert_ids.shape[2:]) != (layers, chosen):
            raise InvalidInputError(
                f"expert_ids has shape {list(expert_ids.shape)}; expected [B, T, L, K] with L = {layers} routed layers "
                f"and K = {chosen} experts activated per token"
            )
        if expert_ids.numel() and not (int(expert_ids.min()) >= 0 and int(expert_ids.max()) < experts):
            raise InvalidInputError(
                f"expert_ids holds {int(expert_ids.min())} to {int(expert_ids.max())}; the model has {experts} "
                "experts, from 0 on"
            )


class RouterRecord:
    """What the routers did in one forward pass. Nothing here carries gradient."""

    def __init__(self, family: Family, layout: RouterLayout, expert_ids: Tensor | None, positions: slice) -> None:
        self._family = family
        self._layout = layout
        self._given = expert_ids
        self._positions = positions
        self._rows = 0
        self._ids: dict[int, Tensor] = {}
        self._scores: dict[int, Tensor] = {}

    @property
    def expert_ids(self) -> Tensor:
        """[B, T, L, K]: what was given to `record`; else what the routers chose, uint8 up to 256 experts, else int32.

        Raises:
            PreconditionError: no forward pass has ended inside of `record`.
        """
        return self._whole(self._ids) if self._given is None else self._given

    @property
    def log_scores(self) -> Tensor:
        """[B, T, L, K] float32, <= 0: natural log of the scores of `expert_ids`, over all experts in softmax routers.

        Raises:
            PreconditionError: no forward pass has ended inside of `record`.
        """
        return self._whole(self._scores)

    def begin(self, rows: int) -> None:
        """A forward pass of B = `rows` rows begins."""
        self._rows = rows

    @torch.no_grad()
    def see(self, layer: int, router: nn.Module, output: Any) -> None:
        """A router's forward is over. Activation checkpointing runs it again in the backward pass: it counts once."""
        if layer in self._scores:
            return
        logits, chosen = (self._cut(values) for values in read(self._family, router, output))
        if self._given is None:
            self._ids[layer] = chosen.to(torch.uint8 if self._layout.num_experts <= 256 else torch.int32)
        else:
            chosen = self._given[:, :, layer].to(logits.device).long()
            if chosen.shape[:2] != logits.shape[:2]:
                raise InvalidInputError(
                    f"expert_ids has [B, T] = {list(chosen.shape[:2])}; the forward pass has "
                    f"{list(logits.shape[:2])} at positions {self._positions}"
                )
        self._scores[layer] = log_scores(self._layout.score_function, logits, chosen)

    def _cut(self, values: Tensor) -> Tensor:
        """[B * W, X] to [B, T, X]."""
        return values.view(self._rows, -1, values.shape[-1])[:, self._positions]

    def _whole(self, layers: dict[int, Tensor]) -> Tensor:
        if len(layers) < len(self._layout.layer_ids):
            raise PreconditionError("the tap saw no forward pass; run the model inside of `with tap.record(...)`")
        return torch.stack([layers[layer] for layer in range(len(layers))], dim=2)


def _unwrapped(model: Any) -> Any:
    """The model of transformers inside the wrappers of PEFT and DistributedDataParallel."""
    while True:
        if callable(inner := getattr(model, "get_base_model", None)):
            model = inner()
        elif isinstance(module := getattr(model, "module", None), nn.Module):
            model = module
        else:
            break
    if not hasattr(getattr(model, "config", None), "model_type"):
        raise InvalidInputError(f"model is of type {type(model).__name__}; expected a model of transformers")
    return model
