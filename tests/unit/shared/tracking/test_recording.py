"""Records go to the run's folder and to every tracker; a tracker that fails, hangs or is slow stops nothing."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from shared.errors import NotFoundError, PreconditionError
from shared.recipes import load
from shared.settings import BaseSettings, RunSettings
from shared.tracking import recording, records
from shared.tracking.recording import Recording
from shared.tracking.registry import GROUP
from shared.tracking.trackers.settings import TrackingSettings
from tests.support.entry_points import Site

PACKAGE = """
import json, threading
from shared.tracking.base import Tracker

class Lines(Tracker):
    name = "lines"

    def log(self, kind, record):
        if record.get("step") == 2:
            raise ConnectionError("the tracker is away")
        with (self.run.folder / "lines.txt").open("a") as file:
            file.write(json.dumps([kind, record]) + "\\n")

    def close(self):
        with (self.run.folder / "lines.txt").open("a") as file:
            file.write("closed")

class Stuck(Tracker):
    name = "stuck"
    free = threading.Event()

    def log(self, kind, record):
        self.free.wait()

    def abandon(self):
        (self.run.folder / "abandoned.txt").write_text(self.service)

class Late(Tracker):
    name = "late"
    attempts = 0
    taken = []

    def open(self):
        Late.attempts += 1
        if Late.attempts < 3:
            raise ConnectionError("the tracker is away")
        return "there"

    def log(self, kind, record):
        self.taken.append(record["step"])

class Exits(Lines):
    name = "exits"

    def log(self, kind, record):
        if record["step"] == 2:
            raise SystemExit(1)
        super().log(kind, record)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site", monkeypatch) as site:
        yield site


def counted(tracker: str, outcome: str) -> float:
    labels = {"tracker": tracker, "outcome": outcome}
    return REGISTRY.get_sample_value("routershift_tracker_records_total", labels) or 0.0


def settings(tmp_path: Path, *trackers: str, **tracking: float) -> BaseSettings:
    run = RunSettings(id="test", folder=tmp_path, model=tmp_path, trackers=trackers)
    return BaseSettings(run=run, tracking=TrackingSettings.model_validate(tracking))


def test_without_trackers_there_is_the_folder(tmp_path: Path) -> None:
    recording = Recording(settings(tmp_path), "learner")
    recording.add("step", {"step": 1})
    recording.add("evaluation", {"version": 0})
    recording.close()
    assert [record["step"] for record in records.read(tmp_path / "test" / records.LEARNER)] == [1]
    assert [record["version"] for record in records.read(tmp_path / "test" / records.EVALUATIONS)] == [0]


def test_a_tracker_gets_every_record_and_its_failures_are_counted(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install(GROUP, "lines = routershift_lines:Lines", "routershift_lines", PACKAGE)
    before = {outcome: counted("lines", outcome) for outcome in ("ok", "failed", "dropped")}
    recording = Recording(settings(tmp_path, "lines"), "learner")
    with caplog.at_level(logging.ERROR):
        for step in (1, 2, 3):
            recording.add("step", {"step": step})
        recording.add("evaluation", {"version": 3, "accuracy": 0.5})
        recording.close()
    *lines, closed = (tmp_path / "lines.txt").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        ["step", {"step": 1}],
        ["step", {"step": 3}],
        ["evaluation", {"version": 3, "accuracy": 0.5}],
    ]
    assert closed == "closed"
    assert "tracker lines: ConnectionError: the tracker is away" in caplog.text
    assert {outcome: counted("lines", outcome) - n for outcome, n in before.items()} == {
        "ok": 3,
        "failed": 1,
        "dropped": 0,
    }
    assert len(records.read(tmp_path / "test" / records.LEARNER)) == 3


def test_one_that_hangs_loses_records_and_holds_nobody_up(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.install(GROUP, "stuck = routershift_lines:Stuck", "routershift_lines", PACKAGE)
    before = counted("stuck", "dropped")
    stuck = Recording(settings(tmp_path, "stuck", max_waiting=4, close_seconds=0.2), "learner")
    for step in range(20):
        stuck.add("step", {"step": step})
    with caplog.at_level(logging.ERROR):
        stuck.close()
    assert counted("stuck", "dropped") - before == 20, "none was taken, and none is lost in silence"
    assert (tmp_path / "abandoned.txt").read_text() == "learner"
    assert "tracker stuck did not end within 0.2 s" in caplog.text
    assert len(records.read(tmp_path / "test" / records.LEARNER)) == 20
    sys.modules["routershift_lines"].Stuck.free.set()


def test_records_wait_for_one_that_is_away_at_the_start(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.install(GROUP, "late = routershift_lines:Late", "routershift_lines", PACKAGE)
    monkeypatch.setattr(recording, "_FIRST_PAUSE_SECONDS", 0.05)
    late = Recording(settings(tmp_path, "late"), "learner")
    with caplog.at_level(logging.INFO):
        for step in (1, 2, 3):
            late.add("step", {"step": step})
        taken = sys.modules["routershift_lines"].Late.taken
        deadline = time.monotonic() + 60
        while len(taken) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        late.close()
    assert taken == [1, 2, 3]
    assert caplog.text.count("tracker late: ConnectionError: the tracker is away") == 1
    assert "tracker late: there" in caplog.text


def test_one_that_never_opens_has_its_records_counted_as_failed(tmp_path: Path, site: Site) -> None:
    site.install(GROUP, "late = routershift_lines:Late", "routershift_lines", PACKAGE)
    before = counted("late", "failed")
    late = Recording(settings(tmp_path, "late"), "learner")
    for step in (1, 2, 3):
        late.add("step", {"step": step})
    late.close()
    assert counted("late", "failed") - before == 3


def test_a_package_that_would_end_the_process_costs_one_record(tmp_path: Path, site: Site) -> None:
    site.install(GROUP, "exits = routershift_lines:Exits", "routershift_lines", PACKAGE)
    exits = Recording(settings(tmp_path, "exits"), "learner")
    for step in (1, 2, 3):
        exits.add("step", {"step": step})
    exits.close()
    *lines, closed = (tmp_path / "lines.txt").read_text().splitlines()
    assert ([json.loads(line)[1]["step"] for line in lines], closed) == ([1, 3], "closed")
    assert (counted("exits", "ok"), counted("exits", "failed")) == (2, 1)


def test_an_unknown_tracker_is_named_with_those_there_are(tmp_path: Path, site: Site) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"run\.trackers has 'nowhere'; known: tensorboard, wandb, mlflow, trackio\..*routershift\.trackers",
    ):
        Recording(settings(tmp_path, "nowhere"), "learner")
    site.install(GROUP, "json = json:loads", "routershift_lines", PACKAGE)
    with pytest.raises(PreconditionError, match=r"entry point json = json:loads .* is no subclass of Tracker"):
        Recording(settings(tmp_path, "json"), "learner")


def test_flags_and_environment_name_several() -> None:
    flags = ["run.model=m", "run.trackers=one,two"]
    assert load(BaseSettings, None, {}, flags).run.trackers == ("one", "two")
