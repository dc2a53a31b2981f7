"""Rewards of a group of responses to one prompt, and their advantages relative to each other."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from routershift.algorithms.choices import AdvantageKind

ZERO_VARIANCE = "zero_variance"


def overlong_penalty(tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """What a response of `tokens` loses of its reward, 0 to -1: linear over the last `buffer_tokens` of `max_tokens`.

    Soft over-long punishment (arXiv 2503.14476, equation 13). No buffer, no penalty.
    """
    if buffer_tokens == 0:
        return 0.0
    return -min(max(tokens - (max_tokens - buffer_tokens), 0) / buffer_tokens, 1.0)


def drop_reason(rewards: Sequence[float]) -> str | None:
    """Why a group has nothing to teach; None where it has. Penalties must be in the rewards already.

    Equal rewards make every advantage zero (arXiv 2503.14476, section 3.2). They are compared, up to the rounding
    of a sum of reward and penalty: a standard deviation is not exactly 0 either, and dividing by it makes signal
    of rounding.
    """
    return ZERO_VARIANCE if math.isclose(min(rewards), max(rewards), rel_tol=1e-9, abs_tol=1e-12) else None


def group_advantages(rewards: Sequence[float], kind: AdvantageKind) -> NDArray[np.float32]:
    """Advantages [G] of the rewards of a group; zeros where all are equal.

    z_score: (r - mean) / std, the std of the population (arXiv 2402.03300, section 4.1.2).
    mean: r - mean (Dr. GRPO, arXiv 2503.20783, section 3.2).
    leave_one_out: r - mean of the others (RLOO, arXiv 2402.14740), which is G / (G - 1) times the former.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if drop_reason(rewards):
        return np.zeros(values.shape, dtype=np.float32)
    advantages: NDArray[np.float64] = values - values.mean()
    if kind == "z_score":
        advantages = advantages / values.std()
    elif kind == "leave_one_out":
        advantages = advantages * (values.size / (values.size - 1))
    return advantages.astype(np.float32)
