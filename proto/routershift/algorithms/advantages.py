"""Rewards of a group of responses to one prompt, and their advantages relative to each other."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from routershift.algorithms.choices import AdvantageKind

# Why a group is not trained on.
ZERO_VARIANCE = "zero_variance"
OVERLONG = "overlong"
DECIDED = "decided"  # by its first rewards, so that no more were sampled


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


def turn_rewards(reward: float, turns: Sequence[float | None]) -> list[float]:
    """What each turn of an episode has earned: what it was given, and the last one what is left of `reward`.

    So a verdict on the whole episode, or a penalty on its length, is earned by the last turn.
    """
    given = [turn or 0.0 for turn in turns]
    return [*given[:-1], reward - sum(given[:-1])]


def turn_advantages(rewards: Sequence[Sequence[float]], kind: AdvantageKind) -> list[NDArray[np.float32]]:
    """Advantages [turns] of each episode of a group; zeros where no turn differs from its like.

    A turn is judged by its return, the sum of what was earned from it on: it cannot have caused what was earned before
    (arXiv 2511.14846 has returns of turns as advantages, discounted). Its baseline is the mean return of the episodes'
    turns of the same number. A turn that one episode alone has reached has no like: its advantage is that of the whole
    episode, whose baseline, less what was earned before the turn, is as independent of what the turn did.

    z_score divides by the root mean square of these differences in the group; leave_one_out takes the mean of the
    others for a baseline. Episodes of one turn have the advantages of `group_advantages`.

    Args:
        rewards: of each turn of each episode, at least one turn each.
    """
    returns = [np.cumsum(np.asarray(turns, dtype=np.float64)[::-1])[::-1] for turns in rewards]
    scale = max(float(np.abs(each).max()) for each in returns)
    differences = [np.zeros(each.size) for each in returns]
    for turn in range(max(each.size for each in returns)):
        reached = [i for i, each in enumerate(returns) if each.size > turn]
        at, compared = (turn, reached) if len(reached) > 1 else (0, list(range(len(returns))))
        baseline = float(np.mean([returns[i][at] for i in compared]))
        others = len(compared) / (len(compared) - 1) if kind == "leave_one_out" else 1.0
        for i in reached:
            differences[i][turn] = (returns[i][at] - baseline) * others
    together = np.concatenate(differences)
    if np.abs(together).max() <= max(1e-9 * scale, 1e-12):  # rounding, of which a division would make signal
        return [np.zeros(each.size, np.float32) for each in returns]
    spread = float(np.sqrt(np.mean(together**2))) if kind == "z_score" else 1.0
    return [(each / spread).astype(np.float32) for each in differences]


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
