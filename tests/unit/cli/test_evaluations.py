"""What the records of evaluations say: the best version, and how sure an accuracy is."""

from pathlib import Path

import numpy as np
import pytest

from services.cli.evaluations import accuracy_interval, best, independent_samples, interval
from shared.weights import published
from tests.support.run_records import evaluation


def test_the_best_is_the_earliest_of_the_highest_and_lies_where_it_was_kept(tmp_path: Path) -> None:
    checkpoints = [tmp_path / "checkpoints" / f"step-00000010-000{i}" for i in range(2)]
    weights = tmp_path / "weights" / published.folder_name(10)
    for folder in (*checkpoints, weights):
        folder.mkdir(parents=True)
    found = best(tmp_path, [evaluation(0, 0.2), evaluation(10, 0.5), evaluation(20, 0.5), evaluation(30, 0.4)])
    assert found == {
        "version": 10,
        "accuracy": 0.5,
        "checkpoint": str(checkpoints[1]),
        "weights": str(weights),
    }
    assert best(tmp_path, [evaluation(0, 0.6)]) == {
        "version": 0,
        "accuracy": 0.6,
        "checkpoint": None,
        "weights": None,
    }


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [
        (0.2, 10, 0.0567, 0.5098),  # 2 of 10, as statsmodels.stats.proportion.proportion_confint has them
        (0.0, 20, 0.0, 0.1611),
        (1.0, 20, 0.8389, 1.0),
        (0.5, 1000, 0.4691, 0.5309),
    ],
)
def test_the_interval_is_that_of_wilson(share: float, trials: float, low: float, high: float) -> None:
    assert interval(share, trials) == pytest.approx((low, high), abs=1e-4)


def test_an_interval_of_no_trial_says_nothing() -> None:
    assert interval(0.5, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.6), (2.0, 2.0), (30.0, 30.0)])
def test_samples_of_a_problem_count_as_much_as_they_differ(a: float, b: float) -> None:
    """Against the spread of the accuracy itself over many held-out sets, whose problems are as hard as Beta(a, b)."""
    problems, each, sets = 200, 4, 4000
    generator = np.random.default_rng(0)
    p = generator.beta(a, b, (sets, problems))
    solved = generator.binomial(each, p)
    accuracies = solved.mean(axis=1) / each
    missed = each - solved
    at_2 = 1 - (missed * (missed - 1)).mean(axis=1) / (each * (each - 1))
    found = [
        independent_samples(
            evaluation(0, float(acc), problems=problems, samples=problems * each, pass_at_k={"2": float(two)})
        )
        for acc, two in zip(accuracies, at_2, strict=True)
    ]
    mean = accuracies.mean()
    assert np.mean(found) == pytest.approx(mean * (1 - mean) / accuracies.var(), rel=0.1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"pass_at_k": {}}, 8),  # four samples each, and nothing is known of how alike they are
        ({"samples": 8, "pass_at_k": {}}, 8),
        ({"accuracy": 0.5, "pass_at_k": {"2": 0.5}}, 8),  # every problem is always solved or never
        ({"accuracy": 0.5, "pass_at_k": {"2": 0.75}}, 32),  # all problems are alike
        ({"accuracy": 0.5, "pass_at_k": {"2": 0.99}}, 32),  # chance: never more than there are
        ({"accuracy": 0.0, "pass_at_k": {"2": 0.0}}, 8),
        ({"problems": 0, "samples": 0}, 0),
    ],
)
def test_independent_samples_lie_between_problems_and_samples(more: dict[str, object], expected: float) -> None:
    assert independent_samples(evaluation(0, 0.5) | more) == expected


def test_alike_samples_make_a_wider_interval() -> None:
    alike, different = (accuracy_interval(evaluation(0, 0.5, pass_at_k={"2": two})) for two in (0.5, 0.75))
    assert alike[0] < different[0] < 0.5 < different[1] < alike[1]
