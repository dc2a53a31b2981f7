"""Advantages of a group of responses to one prompt, relative to each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ZERO_VARIANCE = "zero_variance"


def drop_reason(rewards: Sequence[float]) -> str | None:
    """Why a group has nothing to teach; None where it has.

    Equal rewards make every advantage zero (arXiv 2503.14476, section 3.2). They are compared, and not their
    standard deviation, which rounding keeps from being 0.
    """
    return ZERO_VARIANCE if min(rewards) == max(rewards) else None


def group_advantages(rewards: Sequence[float]) -> NDArray[np.float32]:
    """(r - mean) / std over the group, [G] (arXiv 2402.03300, section 4.1.2); zeros where all rewards are equal."""
    values = np.asarray(rewards, dtype=np.float64)
    if drop_reason(rewards):
        return np.zeros(values.shape, dtype=np.float32)
    advantages: NDArray[np.float32] = ((values - values.mean()) / values.std()).astype(np.float32)
    return advantages
