"""Rewards to advantages, the over-long penalty, and groups with nothing to teach."""

import math

import numpy as np
import pytest

from routershift.algorithms.advantages import (
    ZERO_VARIANCE,
    drop_reason,
    group_advantages,
    overlong_penalty,
    turn_advantages,
    turn_rewards,
)
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


def test_the_last_turn_earns_what_no_other_was_given() -> None:
    assert turn_rewards(1.0, [None]) == [1.0]
    assert turn_rewards(1.0, [0.25, None, 0.5]) == [0.25, 0.0, 0.75]
    assert turn_rewards(0.5, [1.0, 0.0]) == [1.0, -0.5]  # a penalty for the length of the episode


@pytest.mark.parametrize("kind", ["z_score", "mean", "leave_one_out"])
def test_episodes_of_one_turn_have_the_advantages_of_their_group(kind: AdvantageKind) -> None:
    found = turn_advantages([[reward] for reward in REWARDS], kind)
    np.testing.assert_allclose(np.concatenate(found), group_advantages(REWARDS, kind), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Returns: 3, 2 / 1, 1 / 2. Means: 2 of the first turns, 1.5 of the second ones.
        ("mean", [[1.0, 0.5], [-1.0, -0.5], [0.0]]),
        ("leave_one_out", [[1.5, 1.0], [-1.5, -1.0], [0.0]]),
        ("z_score", [[1.0, 0.5], [-1.0, -0.5], [0.0]]),
    ],
)
def test_a_turn_is_judged_by_what_was_earned_from_it_on(kind: AdvantageKind, expected: list[list[float]]) -> None:
    found = turn_advantages([[1.0, 2.0], [0.0, 1.0], [2.0]], kind)
    spread = math.sqrt(2.5 / 5) if kind == "z_score" else 1.0
    for advantages, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(advantages, [value / spread for value in wanted], rtol=1e-6)


def test_a_turn_that_one_episode_alone_has_reached_has_the_advantage_of_its_episode() -> None:
    first, second = turn_advantages([[0.0, 0.0, 1.0], [0.0]], "mean")
    np.testing.assert_allclose(first, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(second, [-0.5])


@pytest.mark.parametrize("kind", ["z_score", "mean", "leave_one_out"])
def test_turns_that_earned_the_same_have_nothing_to_teach_however_they_round(kind: AdvantageKind) -> None:
    found = turn_advantages([[0.1, 0.2], [0.1, 0.3 - 0.1], [0.1 * 3]], kind)
    assert np.concatenate(found).tolist() == [0.0] * 5
