"""Where the routers of a model family sit in transformers and how they score: the one table for a new family.

Needs torch and transformers, so only the learner and the torch engine import it.
"""

from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from shared.errors import InvalidInputError
from shared.trajectory import RouterLayout, ScoreFunction


@dataclass(frozen=True, slots=True)
class Family:
    """A router's forward gives (logits [N, E], weights [N, K], expert ids [N, K]) for N tokens, E experts."""

    router: str  # path of the router inside a decoder layer; absent in dense layers
    score_function: ScoreFunction


# By `model_type` of the Hugging Face config.
FAMILIES = {
    "mixtral": Family("mlp.gate", ScoreFunction.SOFTMAX),
    "olmoe": Family("mlp.gate", ScoreFunction.SOFTMAX),
    "qwen2_moe": Family("mlp.gate", ScoreFunction.SOFTMAX),
    "qwen3_moe": Family("mlp.gate", ScoreFunction.SOFTMAX),
}


def routers_of(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The routers by index of their decoder layer, ascending; empty for an unknown family or a dense model."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return {}
    found = ((i, _descendant(layer, family.router)) for i, layer in enumerate(model.base_model.layers))
    return {i: router for i, router in found if router is not None}


def layout_of(model: PreTrainedModel) -> RouterLayout | None:
    """None for an unknown family or a dense model."""
    routers = routers_of(model)
    if not routers:
        return None
    first: Any = next(iter(routers.values()))
    return RouterLayout(
        layer_ids=tuple(routers),
        num_experts=first.num_experts,
        top_k=first.top_k,
        score_function=FAMILIES[model.config.model_type].score_function,
    )


def check_layout(found: RouterLayout, expected: RouterLayout) -> None:
    """Raises InvalidInputError, naming the fields, where a trace was recorded on a model with other routers."""
    wrong = [
        f"{field.name} is {getattr(found, field.name)!r}, the model here has {getattr(expected, field.name)!r}"
        for field in fields(RouterLayout)
        if getattr(found, field.name) != getattr(expected, field.name)
    ]
    if wrong:
        raise InvalidInputError(f"router_trace.layout: {'; '.join(wrong)}; generation must serve the learner's model")


def _descendant(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module
