"""What the optimizer has in host memory, through the trainer: the bits, checkpoints of every form, and refusals."""

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.data.batch import Group
from services.learner.model.moments import MOMENTS, read
from services.learner.monitoring.report import NON_FINITE
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.errors import PreconditionError
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.training import gradients, make, save, weights

COMMON: dict[str, Any] = {"precision": "bfloat16", "optimizer__learning_rate": 1e-4}
FORMS: dict[str, dict[str, Any]] = {
    "wide": {},
    "narrow": {"optimizer__moments": "bfloat16"},
    "bytes": {"optimizer__moments": "uint8", "optimizer__offload": "moments"},
    "masters": {"optimizer__offload": "masters"},
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in bfloat16, whose rows are whole blocks."""
    folder = save_model(
        tmp_path_factory.mktemp("narrow"), hidden_size=256, moe_intermediate_size=64, num_hidden_layers=2
    )
    model = load(folder).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def groups(narrow: Path) -> list[Group]:
    return random_groups(perturbed(load(narrow), 0.005), groups=2, samples=3)


def test_masters_in_host_memory_change_no_bit(narrow: Path, groups: list[Group], tmp_path: Path) -> None:
    """Several passes for an update, so that gradients are summed; with routers in a precision of their own too."""
    common = {**COMMON, "micro_batch_tokens": 40, "minibatches": 2}
    tables: list[dict[str, Any]] = [{}, {"router_precision": "float32"}]
    for routers in tables:
        found: dict[str, list[dict[str, Tensor]]] = {}
        for offload in ("none", "moments", "masters"):
            with closing(make(narrow, optimizer__offload=offload, **common, **routers)) as trainer:
                for _ in range(2):
                    trainer.train_step(groups)
                last = {name: whole(gradient) for name, gradient in gradients(trainer).items()}
                masters = {name: whole(w) for name, w in trainer._optimizer.weights(trainer._parameters).items()}
                found[offload] = [last, masters, weights(trainer, tmp_path / offload)]
                rounded = [name for name, p in trainer._parameters.items() if p.dtype == torch.bfloat16]
                assert bool(rounded) == (offload == "masters")
                assert any("mlp.gate.weight" in name for name in rounded) == (offload == "masters" and not routers)
        for other in (found["moments"], found["masters"]):
            for ours, theirs in zip(other, found["none"], strict=True):
                assert ours.keys() == theirs.keys() != set()
                assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
                assert all(ours[name].dtype == tensor.dtype for name, tensor in theirs.items())


@pytest.mark.usefixtures("torchao")
def test_every_form_goes_on_from_every_other(narrow: Path, groups: list[Group], tmp_path: Path) -> None:
    """Bit for bit from its own; else with what was saved, rounded or widened."""
    saved: dict[str, dict[str, Tensor]] = {}
    for form, changes in FORMS.items():
        (tmp_path / form).mkdir()
        with closing(make(narrow, **COMMON, **changes)) as trainer:
            trainer.train_step(groups)
            save(trainer, tmp_path / form, {})
            saved[form] = state_of(trainer)
            trainer.train_step(groups)
            expected = state_of(trainer)
        with closing(make(narrow, **COMMON, **changes)) as resumed:
            resumed.load(tmp_path / form)
            resumed.train_step(groups)
            found = state_of(resumed)
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for form, changes in FORMS.items():
        with closing(make(narrow, **COMMON, **changes)) as trainer:
            for other in FORMS.keys() - {form}:
                trainer.load(tmp_path / other)
                for name, tensor in state_of(trainer).items():
                    exact = not name.endswith(MOMENTS) or form in ("wide", "masters")
                    bound = 0 if exact else 0.005 if form == "narrow" else 0.05
                    assert relative(tensor, saved[other][name]) <= bound, (form, other, name)
            assert trainer.train_step(groups).skipped is None


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and moments in float32, by name."""
    found = {name: whole(w).clone() for name, w in trainer._optimizer.weights(trainer._parameters).items()}
    for name, parameter in trainer._parameters.items():
        flat = {field: whole(t).flatten() for field, t in trainer._optimizer.state[parameter].items()}
        found |= {f"{name}/{moment}": read(flat, moment).clone() for moment in MOMENTS}
    return found


def test_a_batch_that_is_not_finite_changes_nothing_in_host_memory(narrow: Path, groups: list[Group]) -> None:
    with closing(make(narrow, **COMMON, **FORMS["masters"])) as trainer:
        trainer.train_step(groups)
        before = {name: tensor.clone() for name, tensor in state_of(trainer).items()}
        with torch.no_grad():
            trainer._policy.model.lm_head.weight.to_local()[0, 0] = math.nan
        assert trainer.train_step(groups).skipped == NON_FINITE
        after = state_of(trainer)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"offload": "masters"}}, "precision float32: .*set precision bfloat16, or .*offload moments"),
        ({"optimizer": {"offload": "masters"}, "precision": "bfloat16", "lora": {"rank": 8}}, "set .*offload none"),
    ],
)
def test_masters_that_would_be_of_no_use_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearnerSettings.model_validate(changes)


def test_masters_of_a_wider_folder_are_refused(folder: Path) -> None:
    with pytest.raises(PreconditionError, match=r"'masters' and run\.model is in float32, .*offload moments"):
        make(folder, precision="bfloat16", optimizer__offload="masters")


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clip(1e-30))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
