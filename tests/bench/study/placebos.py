"""What takes the place of gamma where it is asked whether gamma's own values matter."""

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor


class Placebo(StrEnum):
    """How gamma~ loses what it knows of single tokens, and keeps its size."""

    PERMUTED = "permuted"  # over the response tokens of a micro-batch: the same values, on other tokens
    MEAN = "mean"  # of the micro-batch, on each of its tokens

    def weigh(self, seed: int) -> Callable[[Tensor], Tensor]:
        """A function from log gamma~ [R] to that of the placebo.

        Args:
            seed: of all permutations of a run, one after the other.
        """
        if self is Placebo.MEAN:
            return lambda log_gamma: log_gamma.exp().mean().log().expand_as(log_gamma)
        generator = torch.Generator().manual_seed(seed)
        return lambda log_gamma: log_gamma[torch.randperm(log_gamma.shape[0], generator=generator)]
