"""Host memory among ranks: what each holds there, from mesh to mesh; and checkpoints that all ranks verify."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.checkpointing import checkpoint
from services.learner.distributed.ranks import Ranks
from services.learner.trainer import Trainer
from shared.errors import CorruptDataError
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.ranked import Shared
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.settings import learner_settings

COMMON: dict[str, Any] = {
    "precision": "bfloat16",
    "router_precision": "float32",
    "micro_batch_tokens": 40,
    "optimizer__learning_rate": 1e-4,
}
CASES: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "plain": ({}, {}),
    "masters": ({"optimizer__offload": "masters"}, {}),
    "bytes": ({"optimizer__offload": "moments", "optimizer__moments": "uint8"}, {"expert": 2}),
}


@pytest.mark.usefixtures("torchao")
def test_what_ranks_have_in_host_memory_goes_to_another_mesh(tmp_path: Path) -> None:
    model = load(save_model(tmp_path / "model")).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(tmp_path / "model")
    torchrun.run(2, part, tmp_path)


def part(ranks: Ranks, folder: str) -> None:
    """Masters change no bit; and they, and moments in bytes of divided experts, are the same in another mesh."""
    ranks.__class__ = Shared
    root, held = Path(folder), {}
    for name, (optimizer, mesh) in CASES.items():
        trainer = _make(root, ranks, optimizer, mesh)
        _lead(ranks, trainer, lambda trainer=trainer, name=name: _learn(trainer, root / name, root))
        held[name] = _held(trainer)
        if optimizer:
            other = _make(root, ranks, optimizer, {"replicate": 2})
            _lead(ranks, other, lambda other=other, name=name: _resume(other, root / name))
            before, after = _whole_state(trainer), _whole_state(other)
            assert before.keys() == after.keys()
            assert [name for name, tensor in before.items() if not torch.equal(after[name], tensor)] == []
    assert held["plain"].keys() == held["masters"].keys() != set()
    assert all(torch.equal(held["masters"][name], tensor) for name, tensor in held["plain"].items())
    assert {t.dtype for name, t in held["bytes"].items() if name.endswith("experts.down_proj/exp_avg")} == {torch.uint8}
    ranks.__class__ = Ranks


def _make(root: Path, ranks: Ranks, optimizer: dict[str, str], mesh: dict[str, int]) -> Trainer:
    settings = learner_settings(mesh=mesh, **COMMON, **optimizer)
    return Trainer(settings, RunSettings(model=root / "model"), RolloutSettings(), ranks)


def _lead(ranks: Ranks, trainer: Trainer, do: Any) -> None:
    """Rank 0 does it, and the others follow."""
    if ranks.rank:
        trainer.follow()
        return
    do()
    trainer.close()


def _learn(trainer: Trainer, out: Path, root: Path) -> None:
    groups = random_groups(perturbed(load(root / "model"), 0.005), groups=2, samples=3)
    for _ in range(2):
        trainer.train_step(groups)
    with closing(trainer.snapshot({"groups": {}})) as snapshot:
        checkpoint.complete(checkpoint.write(out, trainer.step, snapshot))


def _resume(trainer: Trainer, root: Path) -> None:
    """Each rank hashes a part of the files; one that was changed is seen, whoever has read it."""
    with patch.object(trainer, "_described", wraps=trainer._described) as described:
        resumed = checkpoint.load_latest(root, trainer)
    assert resumed.torn == ()
    (whole,) = root.glob("step-*")
    names: Sequence[str] = described.call_args.args[1]
    assert set(names) == {path.name for path in whole.iterdir()} - {checkpoint.MANIFEST}
    for name in names[:2]:  # of rank 0, and of rank 1
        content = (whole / name).read_bytes()
        (whole / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CorruptDataError, match=name):
            checkpoint.verify(whole, trainer.described)
        (whole / name).write_bytes(content)
    checkpoint.verify(whole, trainer.described)


def _whole_state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and moments of all ranks. Collective."""
    found: dict[str, Tensor] = {}
    for name, weight in trainer._optimizer.weights(trainer._parameters).items():
        found[name] = _whole(weight)
        state = trainer._optimizer.state[trainer._parameters[name]]
        found |= {f"{name}/{field}": _whole(tensor) for field, tensor in state.items()}
    return found


def _held(trainer: Trainer) -> dict[str, Tensor]:
    """What this rank has of weights, gradients and moments."""
    found: dict[str, Tensor] = {}
    for name, weight in trainer._optimizer.weights(trainer._parameters).items():
        parameter = trainer._parameters[name]
        gradient = parameter.grad
        assert gradient is not None
        found |= {f"{name}/weight": _local(weight), f"{name}/gradient": _local(gradient)}
        found |= {f"{name}/{field}": _local(t) for field, t in trainer._optimizer.state[parameter].items()}
    return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
