"""The routers of a model folder, read from its descriptions: without torch, and before anything is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routershift.routing.families import family_of
from routershift.routing.layout import RouterLayout
from shared.models.folder import read_json, tensor_shapes, weight_files

# What families call the number of experts that a token activates.
_TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model, where others stand beside it."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens of prompt and response together that a config.json says the model was made for.

    None where only the engine can tell: scaled rotary embeddings reach further, and each engine knows how far.
    """
    text = text_config(config)
    positions = text.get("max_position_embeddings")
    return positions if isinstance(positions, int) and not text.get("rope_scaling") else None


def layout_of_folder(folder: Path) -> RouterLayout | None:
    """That of `routershift.routing.routers.layout_of` for the model that the folder holds.

    The layers that have routers, and the number of experts, are those of the weights themselves: configs of different
    families say it in different words.

    Returns:
        None for a dense model, an unknown family, or a config that does not say how many experts a token activates.

    Raises:
        NotFoundError, CorruptDataError: see `shared.models.folder`.
    """
    config = read_json(folder / "config.json")
    text = text_config(config)
    family = family_of(str(text.get("model_type"))) or family_of(str(config.get("model_type")))
    top_k = next((text[name] for name in _TOP_K if isinstance(text.get(name), int)), None)
    if family is None or top_k is None:
        return None
    layers = text.get("num_hidden_layers")
    name = re.compile(rf"layers\.(\d+)\.(?:[\w]+\.)*{re.escape(family.router.rpartition('.')[2])}\.weight$")
    experts: dict[int, int] = {}
    for tensor, shape in tensor_shapes(weight_files(folder)).items():
        # Layers beyond those of the model are for multi-token prediction, which nothing here uses.
        if (found := name.search(tensor)) and (not isinstance(layers, int) or int(found[1]) < layers):
            experts[int(found[1])] = shape[0]
    if not experts:
        return None
    return RouterLayout(tuple(sorted(experts)), max(experts.values()), top_k, family.score_function)
