"""What a log says last, and its last problems."""

import json
import logging
import os
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


def test_where_there_can_be_no_file_the_terminal_has_all_of_it(
    tmp_path: Path, restored: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for generation on Kubernetes, which only reads the run's volume."""
    (tmp_path / "logs").write_text("no folder")
    logs.configure("generation", tmp_path / "logs")
    try:
        raise ValueError("of this")
    except ValueError:
        logging.exception("it broke")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["service"], line["level"]) for line in lines] == [("generation", "warning"), ("generation", "error")]
    assert "no log file" in lines[0]["message"]
    assert lines[1]["traceback"].splitlines()[0].startswith("Traceback")
    assert lines[1]["traceback"].splitlines()[-1] == "ValueError: of this"


def test_control_characters_do_not_reach_a_terminal(
    tmp_path: Path, restored: object, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("reward", tmp_path)
    said = "a\x1b[2J\x9b31m\rb\x00\u202eé 你\nc"
    logging.error("%s", said)
    shown = capsys.readouterr().err
    assert shown.rstrip("\n").isprintable()
    assert "\\x1b[2J\\x9b31m" in shown
    assert "\\u202eé 你: c" in shown
    (line,) = logs.path(tmp_path, "reward").read_text().splitlines()
    assert json.loads(line)["message"] == said
    assert line.isprintable()


def test_a_log_is_for_its_owner_alone(tmp_path: Path, restored: object) -> None:
    before = os.umask(0)
    try:
        logs.configure("reward", tmp_path)
    finally:
        os.umask(before)
    assert logs.path(tmp_path, "reward").stat().st_mode & 0o777 == 0o600


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
