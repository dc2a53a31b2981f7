"""What responses that were cut teach, by rule."""

from dataclasses import replace

import numpy as np
import pytest

from routershift.algorithms.advantages import OVERLONG, ZERO_VARIANCE
from routershift.trajectory import Completion, FinishReason, Trajectory, VersionSpan
from services.learner.data.batch import Group, Sample
from services.learner.data.plan import Planner
from tests.support.settings import learner_settings

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def group(*samples: tuple[float, FinishReason]) -> Group:
    completion = Completion(0, np.arange(3, dtype=np.int32), np.zeros(3, np.float32), (VersionSpan(0, 3),), STOP, None)
    return Group(
        "g",
        tuple(
            Sample(np.arange(2, dtype=np.int32), Trajectory(replace(completion, finish_reason=reason)), reward)
            for reward, reason in samples
        ),
    )


def advantages(overlong: str, *samples: tuple[float, FinishReason]) -> list[float] | str:
    """Those of each sample that is trained on; or why the group is dropped."""
    settings = learner_settings(overlong=overlong, advantage="mean")
    planner = Planner(settings, 24, ranks=1, with_routes=False, is_flat=False)
    asked = group(*samples)
    if reason := planner.drop_reason(asked):
        return reason
    (update,) = planner.plan([asked], seed=0, step=0)[0]
    (batch,) = update.batches
    return sorted(batch.advantages.tolist())


@pytest.mark.parametrize(
    ("overlong", "expected"),
    [("train", [-0.5, -0.5, 0.5, 0.5]), ("mask", [-0.5, 0.5]), ("drop", [-0.5, 0.5])],
)
def test_half_of_them_cut(overlong: str, expected: list[float]) -> None:
    assert advantages(overlong, (1, STOP), (0, STOP), (1, LENGTH), (0, LENGTH)) == expected


@pytest.mark.parametrize(
    ("overlong", "expected"),
    [("train", [-0.75, 0.25, 0.25, 0.25]), ("mask", [0.25, 0.25, 0.25]), ("drop", ZERO_VARIANCE)],
)
def test_whether_the_reward_of_one_that_was_cut_counts(overlong: str, expected: list[float] | str) -> None:
    assert advantages(overlong, (1, STOP), (1, STOP), (1, STOP), (0, LENGTH)) == expected


@pytest.mark.parametrize(("overlong", "expected"), [("train", [-0.5, 0.5]), ("mask", OVERLONG), ("drop", OVERLONG)])
def test_a_group_of_cut_ones_alone(overlong: str, expected: list[float] | str) -> None:
    assert advantages(overlong, (1, LENGTH), (0, LENGTH)) == expected
