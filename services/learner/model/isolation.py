"""Several sequences in one row: what keeps them apart, in families where transformers alone does not.

transformers reads the borders of packed sequences from position ids that start at 0 again, but not every family asks
it to. A sequence that sees its neighbours trains in silence on something that nobody sampled.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from routershift.routing.families import Packing, family_of, why_refused
from services.learner.model.attention import Attention
from shared.errors import PreconditionError

_FIRST, _OTHER, _SECOND = [1, 2, 3], [3, 1, 1], [2, 1, 3, 2]
_LAYOUTS = (["ns"], ["ns", "sn"])  # of one row, and of several
# Of the spread of the logits. The passes have the same shapes, so that even bfloat16 rounds them alike.
_TOLERANCE = 0.01
_ROUNDED = 0.1  # of passes of other shapes in bfloat16


def isolate(model: PreTrainedModel) -> None:
    """Hooks for the families that need help: forward passes without a cache then keep packed sequences apart."""
    family = family_of(model.config.model_type)
    if family is not None and family.packing in _HOOKS:
        model.get_submodule("model").register_forward_pre_hook(_HOOKS[family.packing], with_kwargs=True)


def check(model: PreTrainedModel, attention: Attention) -> None:
    """Raises PreconditionError where a sequence of a forward pass is not read as it would be alone."""
    check_isolation(model, attention)
    check_windows(model, attention)
    check_division(model, attention)


@torch.no_grad()
def check_isolation(model: PreTrainedModel, attention: Attention) -> None:
    """Raises PreconditionError where a sequence depends on another one of a forward pass, in its row or in another."""
    for layout in _LAYOUTS:
        seen = [_second(model, attention, layout, neighbour) for neighbour in (_FIRST, _OTHER)]
        if (seen[0] - seen[1]).float().abs().max() < _TOLERANCE * seen[0].float().std():
            continue
        kind = model.config.model_type
        why, fix = why_refused(kind), "choose another model"
        if not why and attention.is_flat:
            why, fix = "its attention does not get their borders", 'set learner.attn_implementation = "masked"'
        why = why or "transformers does not make it the mask for packed sequences"
        raise PreconditionError(f"model_type {kind!r} lets packed sequences see each other: {why}; {fix}")


@torch.no_grad()
def check_windows(model: PreTrainedModel, attention: Attention) -> None:
    """Raises PreconditionError where layers have windows that their attention would not be told of.

    Without a mask an attention function knows of a window only by its argument `sliding_window`, which some models'
    code leaves to the mask: their layers would attend to all of a sequence.
    """
    if not attention.is_flat:
        return
    with _windows(attention.name) as given:
        _second(model, attention, _LAYOUTS[0], _FIRST)
    if lost := [module.layer_idx for module, window in given if not window and _has_window(module)]:
        raise PreconditionError(
            f"model_type {model.config.model_type!r} has layers with windows, such as {lost[0]}, and gives them to its "
            'attention by the mask alone; set learner.attn_implementation = "masked"'
        )


@torch.no_grad()
def check_division(model: PreTrainedModel, attention: Attention) -> None:
    """Raises PreconditionError where rows that ranks divide are not read as a rank alone reads them. Collective."""
    if attention.context is None:
        return
    for layout in _LAYOUTS:
        found, whole = (_second(model, each, layout, _FIRST) for each in (attention, replace(attention, context=None)))
        tolerance = _TOLERANCE if found.dtype == torch.float32 else _ROUNDED
        if (found - whole).float().abs().mean() >= tolerance * whole.float().std():
            raise PreconditionError(
                f"learner.mesh.context is {attention.context.size}; model_type {model.config.model_type!r} reads more "
                "of a row than single tokens in other places than its attention; set learner.mesh.context = 1"
            )


@contextmanager
def _windows(name: str) -> Iterator[list[tuple[Any, int | None]]]:
    """The attention modules that call the attention function of this name, and the window that each gives."""
    given: list[tuple[Any, int | None]] = []
    function = ALL_ATTENTION_FUNCTIONS[name]

    def recorded(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        given.append((module, kwargs.get("sliding_window")))
        return function(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[name] = recorded
    try:
        yield given
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = function


def _has_window(module: Any) -> bool:
    """Whether the model's config says so of an attention module."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    return kinds[module.layer_idx] == "sliding_attention" if kinds else bool(getattr(config, "sliding_window", None))


def _second(model: PreTrainedModel, attention: Attention, layout: Sequence[str], neighbour: list[int]) -> Tensor:
    """The logits of `_SECOND`, [S, V], wherever it stands in rows that `neighbour` fills up.

    Args:
        layout: of each row, "n" for the neighbour and "s" for the second.
    """
    rows = [[_SECOND if part == "s" else neighbour for part in row] for row in layout]
    ids, positions, is_second = (
        torch.tensor([[x for part in row for x in entry(part)] for row in rows], device=model.device)
        for entry in (list, lambda part: range(len(part)), lambda part: [part is _SECOND] * len(part))
    )
    return attention.logits(model, ids, positions)[is_second.flatten()]


def _own_mask(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The masks that the decoder would make itself, but for the position ids."""
    positions = kwargs["position_ids"]
    if kwargs.get("attention_mask") is not None or kwargs.get("past_key_values") is not None or positions is None:
        return args, kwargs
    arguments = {
        "config": decoder.config,
        "inputs_embeds": torch.empty(*positions.shape, 0, device=positions.device),  # read for its shape
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": positions,
    }
    masks = {
        "full_attention": create_causal_mask(**arguments),
        "sliding_attention": create_sliding_window_causal_mask(**arguments),
    }
    return args, kwargs | {"attention_mask": masks}


def _refuse_more_than_a_chunk(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Its attention chunks and temperatures count from the start of the row and not of the sequence.

    Raises:
        PreconditionError: a sequence other than the first of its row would cross such a border.
    """
    config, positions = decoder.config, kwargs["position_ids"]
    limit = min(config.attention_chunk_size, config.floor_scale - 1)
    if positions is None or positions.shape[1] <= limit:
        return
    if (positions[:, 1:] == 0).any():
        raise PreconditionError(
            f"rows of {positions.shape[1]} tokens; Llama-4 cannot have several sequences in rows of more than {limit}. "
            "Lower rollout.max_tokens until prompt and response fit"
        )


_HOOKS: dict[Packing, Any] = {Packing.OWN_MASK: _own_mask, Packing.ONE_CHUNK: _refuse_more_than_a_chunk}
