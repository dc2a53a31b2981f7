"""Where a model's routers are and how they score."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np


class ScoreFunction(StrEnum):
    """How a router turns logits into the score of an expert. A correction bias selects, it never scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SOFTMAX_TOPK = "softmax_topk"


@dataclass(frozen=True, slots=True)
class RouterLayout:
    """Where a model's routers sit and how they score. Shared experts are not routed and are not counted."""

    layer_ids: tuple[int, ...]
    num_experts: int
    top_k: int
    score_function: ScoreFunction

    @property
    def id_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8) if self.num_experts <= 256 else np.dtype(np.uint16)
