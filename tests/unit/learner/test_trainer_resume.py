"""What a run that goes on takes from its settings, and what it must have in common with its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.learner.checkpointing.identity import fingerprint, identity
from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups
from tests.support.settings import learner_settings
from tests.support.training import save, weights

README = Path("services/learner/README.md")
BASE: dict[str, Any] = {"optimizer__learning_rate": 1e-3, "optimizer__max_grad_norm": 1e9, "minibatches": 2}
TAKEN: dict[str, Any] = {
    "optimizer__learning_rate": 1e-4,
    "optimizer__warmup_steps": 9,
    "optimizer__schedule": "cosine",
    "optimizer__weight_decay": 0.5,
    "optimizer__beta1": 0.5,
    "optimizer__beta2": 0.5,
    "optimizer__max_grad_norm": 1e-9,
    "advantage": "mean",
    "aggregation": "token_mean",
    "clip_low": 1e-4,
    "clip_high": 1e-4,
    "proximal": "recompute",
    "correction__kind": "mask",
    "router_shift__gamma_min": 0.999,
    "router_shift__layer_aggregation": "product",
    "router_shift__apply": "after_clip",
    "routing_replay": "r3",
    "kl_coefficient": 0.5,
    "entropy_coefficient": 0.5,
    "epochs": 2,
    "minibatches": 1,
}


def trainer(
    folder: Path, run: dict[str, Any] | None = None, rollout: dict[str, Any] | None = None, **settings: Any
) -> Trainer:
    made = RunSettings(model=folder, **{"steps": 20, "task": "countdown"} | (run or {}))
    return Trainer(learner_settings(**BASE | settings), made, RolloutSettings.model_validate(rollout or {}))


@pytest.fixture(scope="module")
def saved(folder: Path, stale: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = trainer(folder)
    made.train_step(stale)
    place = tmp_path_factory.mktemp("checkpoint")
    save(made, place, {})
    return place


def after_a_step(made: Trainer, saved: Path, groups: list[Group], folder: Path) -> dict[str, torch.Tensor]:
    made.load(saved)
    assert made.step == 1
    made.train_step(groups)
    return weights(made, folder)


@pytest.mark.parametrize("name", TAKEN)
def test_a_run_goes_on_with_the_settings_that_it_is_given(
    folder: Path, saved: Path, stale: list[Group], tmp_path: Path, name: str
) -> None:
    same = after_a_step(trainer(folder), saved, stale, tmp_path / "same")
    changed = after_a_step(trainer(folder, **{name: TAKEN[name]}), saved, stale, tmp_path / "changed")
    assert any(not torch.equal(same[key], changed[key]) for key in same)


def test_the_learning_rate_of_a_run_that_goes_on_is_that_of_its_settings(
    folder: Path, saved: Path, stale: list[Group]
) -> None:
    """On the schedule of the run as it is now: of 100 steps, where the checkpoint was of one of 20."""
    made = trainer(folder, {"steps": 100}, optimizer__learning_rate=5e-4, optimizer__schedule="linear")
    made.load(saved)
    made.train_step(stale)
    assert [group["lr"] for group in made._optimizer.param_groups] == pytest.approx([5e-4 * (1 - 1 / 100)])


def test_router_shift_may_come_and_go(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    """The mismatch baseline is kept meanwhile."""
    subtracted: dict[str, Any] = {"router_shift__enabled": True, "router_shift__mismatch_baseline": "subtract"}
    places = [tmp_path / name for name in ("with", "without", "again")]
    made = trainer(folder, algorithm="gmpo", **subtracted)
    made.train_step(random_groups(load(folder), groups=2, samples=3))
    for place, settings in zip(places, (subtracted, {}, subtracted), strict=True):
        place.mkdir()
        save(made, place, {})
        made = trainer(folder, algorithm="gmpo", **settings)
        made.load(place)
    medians = [load_file(place / next(place.glob("*.safetensors")).name) for place in places]
    kept = [held["tensors/mismatch_baseline"] for held in medians]
    assert kept[0].isfinite().all()
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


@pytest.mark.parametrize(
    ("run", "rollout", "settings", "named"),
    [
        ({"groups_per_step": 4}, {}, {}, "run.groups_per_step is 4; checkpoint .* is of another run: 32"),
        ({}, {"n": 4}, {}, "rollout.n is 4; checkpoint .* is of another run: 8"),
        ({"task": "math"}, {}, {}, "run.task is math; checkpoint .* is of another run: countdown"),
        ({"seed": 3}, {}, {}, "run.seed is 3; checkpoint .* is of another run: 0"),
        ({}, {"temperature": 0.5}, {}, "rollout.temperature is 0.5; checkpoint .* is of another run: 1.0"),
        ({}, {}, {"algorithm": "grpo"}, "learner.algorithm is grpo; checkpoint .* is of another run: rspo"),
        ({}, {}, {"lora__rank": 4}, "learner.lora is .*4.*; checkpoint .* is of another run: .*0"),
    ],
)
def test_what_would_spoil_a_run_is_refused_with_both_values(
    folder: Path,
    saved: Path,
    run: dict[str, Any],
    rollout: dict[str, Any],
    settings: dict[str, Any],
    named: str,
) -> None:
    with pytest.raises(InvalidInputError, match=f"^{named}.*Use that, or another run.id"):
        trainer(folder, run, rollout, **settings).load(saved)


def test_another_model_of_the_same_shape_is_refused_and_nothing_is_loaded(saved: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    made = trainer(other)
    before = weights(made, tmp_path / "before")
    with pytest.raises(InvalidInputError, match=rf"^run.model is {other} \(finger.*is of another model: .*finger"):
        made.load(saved)
    assert made.step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(made, tmp_path / "after").items())


def test_a_model_folder_may_move(folder: Path, saved: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    trainer(moved).load(saved)


def test_a_fingerprint_sees_each_weight_and_the_config(folder: Path, tmp_path: Path) -> None:
    known = fingerprint(folder)
    copy = save_model(tmp_path / "copy")
    assert fingerprint(copy) == known
    tensors = load_file(copy / "model.safetensors")
    for name in tensors:
        tensors[name].view(-1)[0] += 1
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(copy) != known
        tensors[name].view(-1)[0] -= 1
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("{", '{"rope_scaling": null,', 1))
    assert fingerprint(copy) != known


def test_the_readme_names_what_is_refused(folder: Path) -> None:
    text = README.read_text(encoding="utf-8").partition("## Going on with other settings")[2].partition("\n## ")[0]
    assert {
        name
        for name in identity(learner_settings(), RunSettings(model=folder), RolloutSettings())
        if f"`{name}`" not in text
    } == set()
