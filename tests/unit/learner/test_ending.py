"""Which criterion ends a run, and what is counted for it."""

from typing import Any

import pytest

from services.learner.ending import Ending, Spent
from shared.settings import RunSettings
from shared.streams.progress import Progress

BEST = Progress(best_accuracy=0.5, best_version=40, accuracy=0.3)


def ending(spent: Spent | None = None, **stop: Any) -> Ending:
    return Ending(RunSettings(model="./model", steps=100, stop=stop), spent or Spent())


@pytest.mark.parametrize(
    ("stop", "spent", "said"),
    [
        ({"accuracy": 0.5}, Spent(), "held-out accuracy 0.5 of version 40 has reached run.stop.accuracy = 0.5"),
        ({"seconds": 60}, Spent(seconds=61.2), "61 s of training have reached run.stop.seconds = 60"),
        ({"tokens": 10}, Spent(tokens=10), "10 tokens trained on have reached run.stop.tokens = 10"),
        ({"accuracy": 0.51, "seconds": 60, "tokens": 10}, Spent(59.0, 9), None),
        ({}, Spent(1e9, 10**12), None),
    ],
)
def test_the_first_criterion_that_is_met_is_said(stop: dict[str, Any], spent: Spent, said: str | None) -> None:
    assert ending(spent, **stop).reason(7, BEST) == said


def test_no_run_ends_before_its_first_step() -> None:
    assert ending(Spent(61.0), seconds=60, accuracy=0.1).reason(0, BEST) is None


def test_the_last_step_ends_it_whatever_the_criteria() -> None:
    assert ending(accuracy=1.0).reason(100, Progress()) == "all 100 steps of run.steps are done"


def test_an_accuracy_that_nobody_measures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stop\.accuracy is 0\.5, and evaluate_every is 0"):
        RunSettings.model_validate({"model": "./model", "evaluate_every": 0, "stop": {"accuracy": 0.5}})


def test_time_counts_only_while_it_is_told_to() -> None:
    found = ending()
    found.tick(counts=False)
    assert found.spent.seconds == 0
    found.tick(counts=True)
    counted = found.spent.seconds
    assert counted > 0
    found.tick(counts=False)
    assert found.spent.seconds == counted


def test_what_was_spent_goes_through_a_checkpoint() -> None:
    spent = Spent(12.5, 300)
    assert Spent.of({**spent.as_meta(), "groups": {}}) == spent
    assert Spent.of({"groups": {}}) == Spent()
