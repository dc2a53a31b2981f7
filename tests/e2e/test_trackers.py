"""A short run with two trackers at once, one of which has no server: training goes on, and the other has all."""

import json
import os
from pathlib import Path

import pytest

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.trackers import Trackers, packages

STEPS = 3


@pytest.mark.timeout(400)
def test_one_of_two_trackers_fails(start: Start, tmp_path: Path) -> None:
    installed = packages()
    flags = settings(
        run__steps=STEPS,
        run__trackers="mlflow,tensorboard",
        tracking__close_seconds=2,
        tracking__mlflow__uri="http://127.0.0.1:9",
    )
    trackers = Trackers(installed, tmp_path / "runs")
    path = os.pathsep.join(filter(None, (trackers.environment["PYTHONPATH"], os.environ.get("PYTHONPATH"))))
    code, out, err = start("run", str(RECIPE), *flags, environment={"PYTHONPATH": path}).finish(300)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
    run = tmp_path / "runs" / "test"
    steps, evaluations = records.steps(run / records.LEARNER), records.read(run / records.EVALUATIONS)
    found = trackers.read("tensorboard")
    learner, curriculum = found["learner"]["scalars"], found["curriculum"]["scalars"]
    assert [step for step, _ in learner["train/loss"]] == [record["step"] for record in steps] == [1, 2, 3]
    assert [value for _, value in learner["train/loss"]] == pytest.approx([record["loss"] for record in steps])
    assert {"router_shift/layer_0", "seconds/train", "queue/scored"} <= set(learner)
    accuracy = curriculum[f"evaluation/{evaluations[0]['set']}/accuracy"]
    assert [value for _, value in accuracy] == pytest.approx([record["accuracy"] for record in evaluations])
    for service in ("learner", "curriculum"):
        logged = "".join(file.read_text() for file in (run / "logs").glob(f"{service}*"))
        assert "tracker mlflow did not end within 2 s" in logged or "tracker mlflow: " in logged
