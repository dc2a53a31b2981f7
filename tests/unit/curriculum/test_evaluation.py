"""What an evaluation estimates, and what of it can be set."""

from itertools import combinations

import pytest

from services.curriculum.evaluation import pass_at_k
from services.curriculum.settings import EvaluationSettings, Settings
from shared.errors import InvalidInputError
from shared.settings import load


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            choices = list(combinations(range(samples), k))
            share = sum(min(choice) < correct for choice in choices) / len(choices)
            assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "k"), [(1, ()), (2, (2,)), (3, (2,)), (4, (2, 4)), (16, (2, 4, 8, 16))])
def test_the_default_is_each_power_of_two_that_there_are_samples_for(samples: int, k: tuple[int, ...]) -> None:
    assert EvaluationSettings(samples=samples).pass_at == k


def test_a_flag_takes_a_list() -> None:
    flags = ["run.model=m", "curriculum.evaluation.samples=5", "curriculum.evaluation.pass_at_k=1,3,5"]
    assert load(Settings, None, {}, flags).curriculum.evaluation.pass_at == (1, 3, 5)


@pytest.mark.parametrize("k", ["2,4", "0"])
def test_more_draws_than_samples_are_refused(k: str) -> None:
    flags = ["run.model=m", "curriculum.evaluation.samples=3", f"curriculum.evaluation.pass_at_k={k}"]
    with pytest.raises(
        InvalidInputError, match=r"curriculum\.evaluation\.pass_at_k.*1 to 3, which is evaluation.samples"
    ):
        load(Settings, None, {}, flags)
