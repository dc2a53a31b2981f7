"""What the torch engine refuses, known from config.json and the settings alone: nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from shared.errors import PreconditionError


def refuse_window(text: Mapping[str, Any], longest: int | None) -> None:
    """Refuses sequences that are longer than the model's attention looks back.

    Args:
        text: config.json, or of a multimodal model its part for text.
        longest: tokens of prompt and response together.

    Raises:
        PreconditionError: names the setting, its value and the most that is allowed.
    """
    # Some configs name a window that they switch off.
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    if isinstance(window, int) and longest is not None and window < longest:
        raise PreconditionError(
            f"generation.max_model_len is {longest}, the model's own where it is not set; the torch engine attends to "
            f"all positions, so set it to at most the model's sliding_window of {window}"
        )
