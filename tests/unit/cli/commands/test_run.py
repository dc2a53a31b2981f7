"""What `routershift run` makes of ledgers and records."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands.run import _drained, _leave, rollouts_per_second
from services.cli.evaluations import best
from shared.errors import DeadlineError
from shared.streams.account import Ledger
from shared.streams.run import Run
from shared.tracking import records
from tests.support.run_records import evaluation
from tests.support.runs import prompt

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat()


def ledger(trained: int, dropped: int) -> Ledger:
    return Ledger(trained + dropped, trained, {"stale": dropped}, {}, 0, {})


def records_at(*seconds: float) -> list[dict[str, Any]]:
    return [{"version": i, "time": at(second)} for i, second in enumerate(seconds)]


def test_a_pause_before_this_start_does_not_count() -> None:
    """400 in the first 100 s, a night, then 600 in 60 s."""
    steps, evaluations = records_at(50, 100, 40_030, 40_060), records_at(10, 100)
    found = rollouts_per_second(
        BEGAN + timedelta(seconds=40_000), ledger(300, 100), ledger(700, 300), steps, evaluations
    )
    assert found == 10.0


def test_a_run_from_its_beginning_counts_from_its_first_evaluation() -> None:
    found = rollouts_per_second(BEGAN, ledger(0, 0), ledger(300, 100), records_at(50, 110), records_at(10, 112))
    assert found == 4.0


def test_a_start_without_a_step_has_no_rate() -> None:
    steps, evaluations = records_at(50, 100), records_at(10, 100)
    assert rollouts_per_second(BEGAN + timedelta(hours=1), ledger(3, 1), ledger(3, 1), steps, evaluations) is None


async def test_a_run_that_does_not_drain_names_the_setting(run: Run) -> None:
    await run.admit(0, prompt(0), 100)
    with pytest.raises(DeadlineError, match=r"4 trajectories are still in flight .* raise supervisor\.drain_seconds"):
        await _drained(run, 0.1)


def test_the_best_says_who_sampled(tmp_path: Any) -> None:
    alone = {"main": True, "version": 10, "oldest_version": 10, "newest_version": 10, "accuracy": 0.5}
    found = best(tmp_path, [alone, {**alone, "version": 20, "accuracy": 0.75, "newest_version": 23}])
    assert found["sampled_by"] == "sampled by versions 10 to 23"
    assert "sampled_by" not in best(tmp_path, [alone])
    found = best(tmp_path, [{**alone, "oldest_version": 12, "newest_version": 12}])
    assert found["sampled_by"] == "sampled by version 12"


def test_a_run_that_has_ended_is_not_undone_by_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    records.append(tmp_path / records.EVALUATIONS, evaluation(0, 0.5))
    (tmp_path / "report.html").mkdir()
    said = _leave(tmp_path, {"steps": 3})
    assert said.startswith("none: ")
    assert "report.html" in said
    assert f"routershift report {tmp_path}" in said
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 3}
    (tmp_path / "report.html").rmdir()
    assert _leave(tmp_path, {}) == str(tmp_path / "report.html")
