"""A run with a model by its name on the Hugging Face Hub, a criterion that ends it, and two trackers, one in vain."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings, starting
from tests.support.hub import cache_model
from tests.support.trackers import Trackers, packages

NAME = "some-org/countdown"


@dataclass(frozen=True)
class Finished:
    """A run that its number of tokens has ended."""

    start: Start
    place: Path  # where the command was given
    snapshot: Path  # of the model in the cache of the Hub
    trackers: Trackers | str  # or why there are none
    steps: int
    said: str

    @property
    def folder(self) -> Path:
        return self.place / "runs/test"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    place = tmp_path_factory.mktemp("extras")
    snapshot = cache_model(place / "hub", NAME, RECIPE.parent / "countdown" / "model")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place / "hub")}
    changes: dict[str, object] = {
        "run__model": NAME,
        "run__model_revision": "main",
        "run__steps": 1000,
        "run__stop__tokens": 1000,
        "run__evaluate_every": 0,
    }
    trackers: Trackers | str
    try:
        trackers = Trackers(packages(), place / "runs")
    except pytest.skip.Exception as missing:
        trackers = str(missing)
    else:
        path = (trackers.environment["PYTHONPATH"], os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        changes |= {
            "run__trackers": "mlflow,tensorboard",
            "tracking__close_seconds": 2,
            "tracking__mlflow__uri": "http://127.0.0.1:9",
        }
    with starting(place) as start:
        code, out, err = start("run", str(RECIPE), *settings(**changes), environment=environment).finish(timeout=240)
        assert code == 0, err
        yield Finished(start, place, snapshot, trackers, json.loads(out.splitlines()[-1])["steps"], err)


def test_a_model_by_name_trains_from_the_cache(finished: Finished) -> None:
    """What is published is whole without the cache."""
    version = sorted((finished.folder / "weights").glob("*/config.json"))[-1].parent
    assert version.name == f"v{finished.steps:08d}"
    assert not [file for file in version.iterdir() if file.is_symlink()]
    assert (version / "tokenizer.json").read_bytes() == (finished.snapshot / "tokenizer.json").read_bytes()


def test_tokens_end_a_run(finished: Finished) -> None:
    """In order: the last version is evaluated, and the summary says why."""
    steps, folder = finished.steps, finished.folder
    assert 1 <= steps < 20
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["end"].endswith("tokens trained on have reached run.stop.tokens = 1000")
    assert f"ended:      {summary['end']}" in finished.said
    assert [each["version"] for each in records.read(folder / records.EVALUATIONS)] == [0, steps]
    assert list((folder / "checkpoints").glob(f"step-{steps:08d}-*"))
    code, out, _ = finished.start("runs").finish(timeout=60)
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["test", "finished", f"{steps}/1000"]


def test_one_of_two_trackers_fails(finished: Finished) -> None:
    """Training goes on, and the other one has all."""
    if isinstance(finished.trackers, str):
        pytest.skip(finished.trackers)
    folder = finished.folder
    steps, evaluations = records.steps(folder / records.LEARNER), records.read(folder / records.EVALUATIONS)
    assert [record["step"] for record in steps] == list(range(1, finished.steps + 1))
    found = finished.trackers.read("tensorboard")
    learner, curriculum = found["learner"]["scalars"], found["curriculum"]["scalars"]
    assert [step for step, _ in learner["train/loss"]] == [record["step"] for record in steps]
    assert [value for _, value in learner["train/loss"]] == pytest.approx([record["loss"] for record in steps])
    assert {"router_shift/layer_0", "seconds/train", "queue/scored"} <= set(learner)
    accuracy = curriculum[f"evaluation/{evaluations[0]['set']}/accuracy"]
    assert [value for _, value in accuracy] == pytest.approx([record["accuracy"] for record in evaluations])
    for service in ("learner", "curriculum"):
        logged = "".join(file.read_text() for file in (folder / "logs").glob(f"{service}*"))
        assert "tracker mlflow did not end within 2 s" in logged or "tracker mlflow: " in logged
