"""Rewards to advantages, the over-long penalty, and groups with nothing to teach."""

import math

import numpy as np
import pytest

from routershift.algorithms.advantages import ZERO_VARIANCE, drop_reason, group_advantages, overlong_penalty
from routershift.algorithms.choices import AdvantageKind

REWARDS = [0.0, 1.0, 0.1, 0.1, 1.0]


def test_z_scores_are_of_the_group_as_a_population() -> None:
    mean = sum(REWARDS) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 5)
    np.testing.assert_allclose(group_advantages(REWARDS, "z_score"), [(r - mean) / deviation for r in REWARDS], 1e-6)
    assert drop_reason(REWARDS) is None


def test_mean_leaves_the_scale_of_rewards() -> None:
    mean = sum(REWARDS) / 5
    np.testing.assert_allclose(group_advantages(REWARDS, "mean"), [r - mean for r in REWARDS], 1e-6)


def test_leave_one_out_compares_with_the_others() -> None:
    expected = [r - (sum(REWARDS) - r) / 4 for r in REWARDS]
    np.testing.assert_allclose(group_advantages(REWARDS, "leave_one_out"), expected, 1e-6)


@pytest.mark.parametrize("rewards", [[0.1] * 3, [1 - 0.3, 0.7, 0.7 - 1e-16], [0.5], [0.0, -0.0]])
@pytest.mark.parametrize("kind", ["z_score", "mean", "leave_one_out"])
def test_equal_rewards_have_nothing_to_teach_however_they_round(rewards: list[float], kind: AdvantageKind) -> None:
    assert drop_reason(rewards) == ZERO_VARIANCE
    assert group_advantages(rewards, kind).tolist() == [0.0] * len(rewards)


def test_small_differences_still_teach() -> None:
    rewards = [1000.0, 1000.001]
    assert drop_reason(rewards) is None
    np.testing.assert_allclose(group_advantages(rewards, "z_score"), [-1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (130, -1.0)]
)
def test_the_penalty_grows_over_the_buffer(tokens: int, penalty: float) -> None:
    assert overlong_penalty(tokens, max_tokens=100, buffer_tokens=20) == pytest.approx(penalty, abs=1e-12)


def test_without_a_buffer_there_is_no_penalty() -> None:
    assert overlong_penalty(100, max_tokens=100, buffer_tokens=0) == 0
