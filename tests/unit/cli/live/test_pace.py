"""How fast a run goes, by its records."""

import pytest

from services.cli.live.pace import STEPS, pace


def record(seconds: float, tokens: float = 100.0) -> dict[str, object]:
    return {"seconds": {"wait": seconds / 2, "train": seconds / 2}, "tokens": tokens, "trajectories": 8}


def test_there_is_no_pace_before_the_first_step() -> None:
    assert pace([]) is None
    assert pace([{"step": 1}]) is None, "a record without times"


def test_the_slowest_of_several_steps_does_not_count() -> None:
    """The first step of a start waits for an evaluation."""
    found = pace([record(600.0), record(2.0), record(2.0)])
    assert found is not None
    assert found.seconds_per_step == 2.0
    assert found.tokens_per_second == 50.0
    assert found.trajectories_per_second == 4.0
    assert found.remaining_seconds(3, 10) == 14.0
    assert found.remaining_seconds(12, 10) == 0


def test_only_the_last_steps_count() -> None:
    found = pace([*(record(100.0) for _ in range(50)), *(record(1.0) for _ in range(STEPS))])
    assert found is not None
    assert found.seconds_per_step == pytest.approx(1.0)
