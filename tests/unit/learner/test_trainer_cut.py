"""Responses that were cut for their length: trained on, masked, or left out of their group."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routershift.algorithms.advantages import OVERLONG, ZERO_VARIANCE
from routershift.trajectory import FinishReason
from services.learner.data.batch import Group
from tests.support.training import PLAIN, make


def cut(group: Group, *samples: int) -> Group:
    """The same group, with these samples cut for their length."""
    return replace(
        group,
        samples=tuple(
            replace(
                sample,
                trajectory=replace(
                    sample.trajectory,
                    completion=replace(
                        sample.completion, finish_reason=FinishReason.LENGTH if i in samples else FinishReason.STOP
                    ),
                ),
            )
            for i, sample in enumerate(group.samples)
        ),
    )


@pytest.mark.parametrize(("overlong", "compared"), [("train", 4), ("mask", 4), ("drop", 3)])
def test_what_was_cut_is_trained_on_masked_or_left_out(
    folder: Path, fresh: list[Group], overlong: str, compared: int
) -> None:
    group = cut(fresh[0], 3)
    trainer = make(folder, **PLAIN, overlong=overlong)
    assert trainer.drop_reason(group) is None
    report = trainer.train_step([fresh[1], group], kept=[1])
    trained = 4 if overlong == "train" else 3
    assert sorted(report.kept) == [(1, s) for s in range(trained)]
    lengths = [sample.completion.token_ids.size for sample in (*fresh[1].samples, *group.samples[:trained])]
    assert report.diagnostics["tokens"] == report.tokens == sum(lengths)
    rewards = np.array([sample.reward for sample in group.samples[:compared]])
    assert [report.kept[1, s].advantage for s in range(trained)] == pytest.approx(
        ((rewards - rewards.mean()) / rewards.std())[:trained], rel=1e-5
    )


@pytest.mark.parametrize("overlong", ["mask", "drop"])
def test_a_group_that_was_all_cut_has_nothing_to_teach(folder: Path, fresh: list[Group], overlong: str) -> None:
    trainer = make(folder, overlong=overlong)
    assert trainer.drop_reason(cut(fresh[0], 0, 1, 2, 3)) == OVERLONG
    assert make(folder).drop_reason(cut(fresh[0], 0, 1, 2, 3)) is None
    lonely = cut(fresh[0], 0, 1, 2)
    assert trainer.drop_reason(lonely) == (None if overlong == "mask" else ZERO_VARIANCE)
