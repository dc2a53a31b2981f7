"""Records of a run, read while they are written, and what the report makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands import report
from shared.errors import PreconditionError
from shared.tracking import records
from shared.weights import published


def evaluation(version: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "set": "countdown",
        "main": True,
        "version": version,
        "oldest_version": version,
        "newest_version": version,
        "problems": 8,
        "samples": 32,
        "accuracy": accuracy,
        "pass_at_k": {"2": 0.6, "4": 0.7},
        "greedy_accuracy": 0.51234,
        "valid": 0.9,
        **more,
    }


STEP = {
    "step": 1,
    "reward_mean": 0.1,
    "train_accuracy": 0.2,
    "staleness_mean": 0.5,
    "staleness_max": 1,
    "queue": {"prompts": 1, "rollouts": 2, "scored": 3},
    "seconds": {"wait": 0.1, "train": 0.2},
    "clip_fraction": 0.01,
}


def test_the_best_is_the_earliest_of_the_highest_and_lies_where_it_was_kept(tmp_path: Path) -> None:
    checkpoints = [tmp_path / "checkpoints" / f"step-00000010-000{i}" for i in range(2)]
    weights = tmp_path / "weights" / published.folder_name(10)
    for folder in (*checkpoints, weights):
        folder.mkdir(parents=True)
    found = report.best(tmp_path, [evaluation(0, 0.2), evaluation(10, 0.5), evaluation(20, 0.5), evaluation(30, 0.4)])
    assert found == {
        "version": 10,
        "accuracy": 0.5,
        "checkpoint": str(checkpoints[1]),
        "weights": str(weights),
    }
    assert report.best(tmp_path, [evaluation(0, 0.6)]) == {
        "version": 0,
        "accuracy": 0.6,
        "checkpoint": None,
        "weights": None,
    }


def test_the_page_shows_every_evaluation_and_the_best(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="holds no records yet"):
        report.write(tmp_path)
    (tmp_path / "weights" / published.folder_name(20)).mkdir(parents=True)
    for step in (STEP, STEP | {"step": 2, "gamma_mean": 0.9, "gamma_p10": 0.8, "dropped_fraction": 0.1, "kl": 0.0}):
        records.append(tmp_path / records.LEARNER, step)
    for each in (
        evaluation(0, 0.25),
        evaluation(20, 0.75, oldest_version=21, newest_version=27, pass_at_k={"8": 0.875}),
    ):
        records.append(tmp_path / records.EVALUATIONS, each)
    (tmp_path / "summary.json").write_text(json.dumps({"task": "<countdown>"}), encoding="utf-8")
    plot, page = report.write(tmp_path)
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    for cells in (("version", "pass@1", "pass@2", "pass@4", "pass@8"), ("0.2500", "0.6000", "0.7000", "0.5123")):
        assert [text.index(cell) for cell in cells] == sorted(text.index(cell) for cell in cells)
    assert "<td>21-27</td><td>0.7500</td><td></td><td></td><td>0.8750</td>" in text
    assert f"Best: version 20 in {tmp_path / 'weights' / 'v00000020'}" in text
    assert "&lt;countdown&gt;" in text


def test_the_main_set_decides_which_version_is_the_best_and_each_set_has_its_rows(tmp_path: Path) -> None:
    other = {"set": "hard", "main": False, "pass_at_k": {}, "greedy_accuracy": None}
    for each in (evaluation(0, 0.25), evaluation(0, 0.9, **other), evaluation(20, 0.5), evaluation(20, 0.1, **other)):
        records.append(tmp_path / records.EVALUATIONS, each)
    assert report.best(tmp_path, records.read(tmp_path / records.EVALUATIONS))["version"] == 20
    _, page = report.write(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<td>countdown</td><td>20</td>" in text
    assert "<td>hard</td><td>20</td><td>20</td><td>0.1000</td><td></td><td></td><td></td><td>0.9000</td>" in text


def test_a_run_that_has_only_been_evaluated_has_a_page(tmp_path: Path) -> None:
    records.append(tmp_path / records.EVALUATIONS, evaluation(0, 0.25))
    _, page = report.write(tmp_path)
    assert "Best: version 0<" in page.read_text(encoding="utf-8")
