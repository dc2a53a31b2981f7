"""Routers that are not trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError
from shared.settings import RolloutSettings, RunSettings
from tests.support.settings import learner_settings
from tests.support.training import save

# Updates small enough to compare gradients, and no clipping of their norm.
PLAIN: dict[str, Any] = {"optimizer__learning_rate": 1e-12, "optimizer__max_grad_norm": 1e9}


def make(folder: Path, **settings: Any) -> Trainer:
    return Trainer(learner_settings(**settings), RunSettings(model=folder), RolloutSettings())


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in trainer._parameters.items() if p.grad is not None}


def test_frozen_routers_stay_and_all_else_is_trained(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer__learning_rate": 1e-2, "freeze_router": True}
    trainer = make(folder, **settings)
    before = load_file(folder / "model.safetensors")
    trainer.train_step(stale)
    trainer.export_weights(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.endswith("mlp.gate.weight")}


def test_all_other_weights_have_the_gradient_that_they_have_beside_trained_routers(
    folder: Path, stale: list[Group]
) -> None:
    frozen, free = make(folder, freeze_router=True, **PLAIN), make(folder, **PLAIN)
    for trainer in (frozen, free):
        trainer.train_step(stale)
    found, expected = gradients(frozen), gradients(free)
    assert found.keys() == {name for name in expected if not name.endswith("mlp.gate.weight")} != expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-8)


def test_a_checkpoint_from_before_a_setting_has_its_default(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    trainer = make(folder)
    trainer.train_step(stale)
    save(trainer, tmp_path, {})
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["identity"].pop("learner.freeze_router") is False
    (tmp_path / "state.json").write_text(json.dumps(state))
    make(folder).load(tmp_path)
    with pytest.raises(InvalidInputError, match=r"learner\.freeze_router is True; .* False"):
        make(folder, freeze_router=True).load(tmp_path)
