"""The routers of a model in transformers: where they are, what they chose, and what they would have given for others.

Families differ in the table of `routershift.routing.families`.

Needs torch, and transformers for its types alone.

Shapes: N tokens of a forward pass, E experts, K experts activated per token.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from routershift.errors import InvalidInputError, PreconditionError
from routershift.routing.families import Family, family_of, no_routers_in_words
from routershift.routing.layout import RouterLayout, ScoreFunction

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read(family: Family, router: Any, output: Any) -> tuple[Tensor, Tensor]:
    """Logits [N, E] and the ids [N, K] of the chosen experts, from the output of a router's forward."""
    if family.sparse:
        weights, logits = output
        return logits, weights.topk(router.top_k, dim=-1).indices
    logits, _, expert_ids = output
    return logits, expert_ids


def combine_weights(family: Family, router: Any, scores: Tensor) -> Tensor:
    """Weights [N, K] float32 of experts whose log-scores are `scores` [N, K]. Gradient flows to these."""
    weights = scores.exp()
    if getattr(router, "norm_topk_prob", family.normalised):
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * getattr(router, "routed_scaling_factor", 1.0)


def reroute(
    family: Family, router: Any, output: Any, expert_ids: Tensor, scores: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The output of a router's forward had it chosen `expert_ids` [N, K] int64, all different for a token.

    Args:
        scores: [N, K] float32, log-scores that the combine weights follow from; None: the live ones.
    """
    logits, _ = read(family, router, output)
    if scores is None:
        scores = log_scores(family.score_function, logits, expert_ids)
    weights = combine_weights(family, router, scores)
    if family.sparse:
        return weights.new_zeros(logits.shape).scatter(1, expert_ids, weights).to(output[0].dtype), logits
    return logits, weights.to(output[1].dtype), expert_ids


def log_scores(function: ScoreFunction, logits: Tensor, expert_ids: Tensor) -> Tensor:
    """Natural log of the scores [N, K] float32 of experts [N, K] int64 from logits [N, E] of any float type.

    Softmax scores are over *all* experts, whatever the family does to the combine weights.
    """
    chosen = logits.gather(-1, expert_ids).float()
    if function is ScoreFunction.SIGMOID:
        return logsigmoid(chosen)
    if function is ScoreFunction.SOFTMAX_TOPK:
        return chosen.log_softmax(dim=-1)
    return chosen - logits.float().logsumexp(dim=-1, keepdim=True)


def routers_of(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The routers by index of their decoder layer, ascending; empty for an unknown family or a dense model."""
    family = family_of(model.config.model_type)
    if family is None:
        return {}
    found = ((i, _descendant(layer, family.router)) for i, layer in enumerate(decoder_layers(model)))
    return {i: router for i, router in found if router is not None}


def decoder_layers(model: PreTrainedModel) -> Any:
    """The ModuleList of the decoder layers of a model with a head."""
    layers: Any = model.get_submodule("model.layers")  # Llama-4 answers to no other name: it is its own base model
    return layers


def layout_of(model: PreTrainedModel) -> RouterLayout | None:
    """None for an unknown family or a dense model."""
    family, routers = family_of(model.config.model_type), routers_of(model)
    if family is None or not routers:
        return None
    first: Any = next(iter(routers.values()))
    return RouterLayout(
        layer_ids=tuple(routers),
        num_experts=first.num_experts,
        top_k=first.top_k,
        score_function=family.score_function,
    )


def require_layout(model: PreTrainedModel) -> RouterLayout:
    """Raises PreconditionError for an unknown family or a dense model."""
    if (layout := layout_of(model)) is not None:
        return layout
    raise PreconditionError(no_routers_in_words(model.config.model_type))


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
