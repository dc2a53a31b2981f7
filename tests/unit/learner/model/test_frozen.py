"""Weights that are not trained take no more memory than in the model folder, and the same bits are learnt."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.learner.model import policy
from services.learner.trainer import Trainer
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.training import make, weights


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in bfloat16."""
    folder = save_model(tmp_path_factory.mktemp("narrow"))
    model = load(folder).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({"lora__rank": 4, "kl_coefficient": 0.1}, lambda trainer: trainer._policy),
        ({"kl_coefficient": 0.1}, lambda trainer: trainer._reference._frozen),
        ({"freeze_router": True}, lambda trainer: trainer._policy),
        ({"freeze_router": True, "router_precision": "float32"}, lambda trainer: trainer._policy),
    ],
    ids=["base of adapters", "reference", "routers", "precise routers"],
)
def test_frozen_weights_are_as_narrow_as_in_the_folder_and_learn_the_same(
    settings: dict[str, Any], frozen: Any, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = random_groups(perturbed(load(narrow).float(), 0.005), groups=2, samples=3)

    def learnt(out: Path) -> tuple[Trainer, dict[str, float]]:
        with closing(make(narrow, precision="bfloat16", optimizer__learning_rate=1e-3, **settings)) as trainer:
            found = [dict(trainer.train_step(groups).diagnostics) for _ in range(2)][-1]
            weights(trainer, out)
        return trainer, found

    trainer, found = learnt(tmp_path / "narrow")
    held = [p for p in frozen(trainer).model.parameters() if not p.requires_grad]
    assert held
    assert {p.dtype for p in held} == {torch.bfloat16}
    assert {p.dtype for p in trainer._parameters.values()} == {torch.float32}
    monkeypatch.setattr(policy, "_narrow", lambda model, dtype, kept: None)
    _, expected = learnt(tmp_path / "wide")
    assert found == expected
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("narrow", "wide"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
