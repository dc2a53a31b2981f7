"""What is listed of the runs of a folder, whole and broken."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import main
from services.cli.run_list import runs
from shared.process.ownership import locked
from shared.tracking import records


def make(root: Path, name: str, **provenance: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    made = {"schema": 1, "run": name, "created": "2026-01-01T00:00:00+00:00", "parent": None, "starts": []}
    made |= {"settings": {"run": {"steps": 4}}} | provenance
    (folder / "provenance.json").write_text(json.dumps(made))
    return folder


def started(time: str) -> list[dict[str, Any]]:
    return [{"time": time, "command": "run", "recipe": "/recipes/small.toml", "step": 0}]


def steps(folder: Path, count: int) -> None:
    for step in range(1, count + 1):
        records.append(folder / records.LEARNER, {"step": step})


def evaluated(folder: Path, *accuracies: float) -> None:
    for version, accuracy in enumerate(accuracies):
        records.append(folder / records.EVALUATIONS, {"version": version, "main": version != 2, "accuracy": accuracy})


def test_states_steps_and_best_accuracy(tmp_path: Path) -> None:
    finished = make(tmp_path, "finished", starts=started("2026-01-02T10:00:00+00:00"))
    steps(finished, 4)
    evaluated(finished, 0.25, 0.5, 0.9)  # the last is of another set
    stopped = make(tmp_path, "stopped", starts=started("2026-01-03T10:00:00+00:00"))
    steps(stopped, 2)
    ended = make(tmp_path, "ended", starts=started("2026-01-04T10:00:00+00:00"))
    steps(ended, 3)
    (ended / "summary.json").write_text('{"steps": 3}')  # it reached a stop criterion
    running = make(tmp_path, "running", starts=started("2026-01-05T10:00:00+00:00"))
    make(tmp_path, "fork", parent={"run": "finished", "step": 2})
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").touch()
    with locked(running, "learner"):
        found = {each.id: each for each in runs(tmp_path)}
    assert list(found) == ["fork", "finished", "stopped", "ended", "running"]
    assert {name: each.state for name, each in found.items()} == {
        "fork": "new", "finished": "finished", "stopped": "stopped", "ended": "finished", "running": "running",
    }  # fmt: skip
    assert found["finished"].best_accuracy == 0.5
    assert (found["stopped"].steps, found["stopped"].total_steps) == (2, 4)
    assert found["fork"].parent == "finished@2"
    assert found["finished"].recipe == "/recipes/small.toml"


def test_a_run_with_a_broken_record_is_listed_with_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = make(tmp_path, "broken")
    (broken / "provenance.json").write_text("{")
    make(tmp_path, "whole")
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert any(line.startswith("broken ") and "provenance.json is no record" in line for line in lines)


def test_files_that_are_linked_count_once(tmp_path: Path) -> None:
    folder = make(tmp_path, "linked")
    before = runs(tmp_path)[0].disk_bytes
    (folder / "weights").write_bytes(b"x" * 1000)
    os.link(folder / "weights", folder / "again")
    assert runs(tmp_path)[0].disk_bytes == before + 1000


def test_json_and_the_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, "one", starts=started("2026-01-02T10:11:12+00:00"))
    steps(folder, 2)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["total_steps"], found["best_accuracy"]) == (2, 4, None)
    assert main(["runs", str(tmp_path)]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["RUN", "STATE", "STEPS"]
    assert row.split()[:6] == ["one", "stopped", "2/4", "-", "2026-01-02", "10:11"]
    assert row.endswith("small.toml")


def test_a_folder_without_runs_and_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no run has its folder in {tmp_path}\n"
    assert main(["runs", str(tmp_path / "none")]) == 2
