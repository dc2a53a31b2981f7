"""Names and values as trackers take them: one rule for records, and for settings."""

from pathlib import Path
from typing import Any

import pytest

from shared.settings import BaseSettings, RedisSettings, RunSettings
from shared.tracking.base import Kind
from shared.tracking.trackers.flat import config, flat_config, flatten


@pytest.mark.parametrize(
    ("kind", "record", "numbers"),
    [
        ("step", {"loss": 0.5, "trajectories": 8}, {"train/loss": 0.5, "train/trajectories": 8.0}),
        ("step", {"seconds": {"train": 1.5, "wait": 2}}, {"seconds/train": 1.5, "seconds/wait": 2.0}),
        ("step", {"router_shift_layer_0": 0.1, "x_layer_11": 3}, {"router_shift/layer_0": 0.1, "x/layer_11": 3.0}),
        ("step", {"paused": True, "counts": [3, 4]}, {"train/paused": 1.0, "counts/0": 3.0, "counts/1": 4.0}),
        ("step", {"loss": None, "deep": {"none": None}, "empty": {}}, {}),
        ("step", {"drops": {"too long": 1, "": 2, "..": 3}}, {"drops/too_long": 1.0, "drops/_": 2.0, "drops/_..": 3.0}),
        ("evaluation", {"set": "main", "main": True, "accuracy": 0.5}, {"evaluation/main/accuracy": 0.5}),
        ("evaluation", {"set": "A/B é", "pass_at_k": {"2": 0.5}}, {"evaluation/A_B_/pass_at_k/2": 0.5}),
        ("evaluation", {"accuracy": 0.5}, {"evaluation/accuracy": 0.5}),
    ],
)
def test_numbers_have_names_that_trackers_group(kind: Kind, record: dict[str, Any], numbers: dict[str, float]) -> None:
    flat = flatten(kind, {"step": 7, "version": 9, **record})
    assert flat.numbers == numbers
    assert flat.texts == {}
    assert flat.step == (7 if kind == "step" else 9)


def test_texts_are_apart() -> None:
    flat = flatten("step", {"step": 1, "reason": "too old", "by": {"layer": "first"}})
    assert (flat.numbers, flat.texts) == ({}, {"train/reason": "too old", "by/layer": "first"})


def test_settings_have_their_names_and_no_secret(tmp_path: Path) -> None:
    run = RunSettings(id="test", model=tmp_path, trackers=("wandb", "mlflow"))
    settings = BaseSettings(run=run, redis=RedisSettings.model_validate({"url": "redis://:secret@127.0.0.1:6379"}))
    flat = flat_config(settings)
    assert (flat["run.id"], flat["run.steps"], flat["run.task"]) == ("test", "100", "null")
    assert (flat["run.trackers.0"], flat["run.trackers.1"]) == ("wandb", "mlflow")
    assert config(settings)["run"]["trackers"] == ["wandb", "mlflow"]
    assert "secret" not in str(config(settings)) + str(flat)
