"""What the torch engine refuses, known from config.json and the settings alone: nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from routershift.routing.families import family_of
from shared.errors import PreconditionError


def refuse(text: Mapping[str, Any], longest: int | None) -> None:
    """Refuses a family that needs more than the engine's attention has, and sequences beyond the model's window.

    Args:
        text: config.json, or of a multimodal model its part for text.
        longest: tokens of prompt and response together.

    Raises:
        PreconditionError: names the setting or the property of the model, its value and what to set instead.
    """
    kind = str(text.get("model_type"))
    family = family_of(kind)
    if family is not None and not family.torch_engine:
        instead = (
            "set it to vllm" if family.vllm_updates else "no engine of ours follows its training: choose another model"
        )
        raise PreconditionError(
            f"generation.engine is 'torch', and model type {kind!r} does not run on the torch engine; {instead}"
        )
    # Some configs name a window that they switch off.
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if isinstance(window, int) and longest is not None and window < longest:
        raise PreconditionError(
            f"generation.max_model_len is {longest}, the model's own where it is not set; the torch engine attends to "
            f"all positions, so set it to at most the model's sliding_window of {window}"
        )
