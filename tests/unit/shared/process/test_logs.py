"""What a log says last, and its last problems."""

import logging
from pathlib import Path

import pytest

from shared.process import logs


@pytest.fixture
def restored() -> object:
    """The handlers of the tests come back."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_problems_are_warnings_and_errors_of_all_services_by_time(tmp_path: Path, restored: object) -> None:
    for service in ("learner", "reward"):
        logs.configure(service, tmp_path, "CRITICAL")
        logging.info("nothing")
        logging.warning("late %s", service)
        try:
            raise ValueError("of this")
        except ValueError:
            logging.exception("it broke\nin two lines")
    found = logs.problems(tmp_path, 10)
    assert [(p.service, p.level, p.message) for p in found] == [
        ("learner", "warning", "late learner"),
        ("learner", "error", "it broke in two lines: ValueError: of this"),
        ("reward", "warning", "late reward"),
        ("reward", "error", "it broke in two lines: ValueError: of this"),
    ]
    assert logs.problems(tmp_path, 1) == found[-1:]


def test_what_is_no_line_of_a_log_is_passed_over(tmp_path: Path) -> None:
    whole = '{"time": "2026-11-28T10:00:00.000+00:00", "level": "error", "service": "x", "message": "m"}'
    (tmp_path / "x.jsonl").write_text(f'half a line"}}\n[]\n{{"level": "error"}}\n\n{whole}\n{whole[:40]}')
    (tmp_path / "y.jsonl").write_bytes(b"\xff\xfe")
    assert [problem.message for problem in logs.problems(tmp_path, 5)] == ["m"]
    assert logs.problems(tmp_path / "none", 5) == []


def test_a_long_log_costs_no_more_than_its_end(tmp_path: Path) -> None:
    line = '{"time": "2026-11-28T10:00:00.000+00:00", "level": "warning", "service": "x", "message": "%s"}\n'
    (tmp_path / "x.jsonl").write_text(line % "first" + line % "x" * 10_000 + line % "last")
    found = logs.problems(tmp_path, 100_000)
    assert found[-1].message == "last"
    assert len(found) < 10_000
