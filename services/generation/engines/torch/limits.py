"""What the torch engine refuses, known from config.json alone: nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from routershift.routing.families import family_of
from shared.errors import PreconditionError


def refuse(text: Mapping[str, Any]) -> None:
    """Refuses a family whose attention the engine cannot compute.

    Args:
        text: config.json, or of a multimodal model its part for text.

    Raises:
        PreconditionError: names the model's type, and what to set instead.
    """
    kind = str(text.get("model_type"))
    family = family_of(kind)
    if family is not None and not family.torch_engine:
        raise PreconditionError(
            f"generation.engine is 'torch', and model type {kind!r} does not run on the torch engine; set it to vllm"
        )
