"""Moments in bfloat16: how far they are from those in float32, and their way through a checkpoint."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from services.learner.data.batch import Group
from services.learner.model.optimizer import NarrowAdamW, make_optimizer
from services.learner.model.settings import OptimizerSettings
from tests.support.training import make, save, weights

MOMENTS = ("exp_avg", "exp_avg_sq")


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("fused", [False, True])
def test_narrow_moments_are_near_those_in_float32(fused: bool) -> None:
    """Gradients of many sizes; beside them a parameter without any."""
    torch.manual_seed(0)
    begin, scale = torch.randn(64, 64), torch.logspace(-6, 0, 64)
    ended, states = {}, {}
    gradients = [torch.randn(64, 64) * scale for _ in range(60)]
    for moments in ("float32", "bfloat16"):
        parameter, unused = nn.Parameter(begin.clone()), nn.Parameter(torch.ones(2))
        settings = OptimizerSettings.model_validate({"moments": moments, "fused": fused, "learning_rate": 1e-2})
        optimizer = make_optimizer([parameter, unused], settings)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        assert torch.equal(unused, torch.ones(2))
        assert unused not in optimizer.state
        ended[moments], states[moments] = parameter.detach() - begin, optimizer.state[parameter]
    wide, narrow = states["float32"], states["bfloat16"]
    assert float(narrow["step"]) == float(wide["step"]) == 60
    for name in MOMENTS:
        assert narrow[name].dtype == torch.bfloat16
        assert 0 < relative(narrow[name], wide[name]) < 0.006, name
    assert 0 < relative(ended["bfloat16"], ended["float32"]) < 0.006


def test_moments_go_through_checkpoints_of_either_dtype(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    """A run goes on bit for bit with its own, and with rounded or widened ones of the other."""
    held: dict[str, list[Tensor]] = {}
    for name in ("float32", "bfloat16"):
        (tmp_path / name).mkdir()
        with closing(make(folder, optimizer__learning_rate=1e-3, optimizer__moments=name)) as trainer:
            trainer.train_step(stale)
            save(trainer, tmp_path / name, {})
            held[name] = [trainer._optimizer.state[p][m] for p in trainer._parameters.values() for m in MOMENTS]
            saved = [moment.clone() for moment in held[name]]
            trainer.train_step(stale)
            expected = weights(trainer, tmp_path / f"{name} straight")
            held[name] = saved
        with closing(make(folder, optimizer__learning_rate=1e-3, optimizer__moments=name)) as resumed:
            resumed.load(tmp_path / name)
            resumed.train_step(stale)
            found = weights(resumed, tmp_path / f"{name} resumed")
            assert all(torch.equal(found[each], tensor) for each, tensor in expected.items())
    for name, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        with closing(make(folder, optimizer__learning_rate=1e-3, optimizer__moments=other)) as trainer:
            trainer.load(tmp_path / name)
            assert isinstance(trainer._optimizer, NarrowAdamW) == (other == "bfloat16")
            found_moments = [trainer._optimizer.state[p][m] for p in trainer._parameters.values() for m in MOMENTS]
            for moment, before in zip(found_moments, held[name], strict=True):
                assert moment.dtype == getattr(torch, other)
                assert torch.equal(moment, before.to(moment.dtype))
            trainer.train_step(stale)


def test_betas_that_rounding_would_undo_are_refused() -> None:
    for name in ("beta1", "beta2"):
        with pytest.raises(ValueError, match=rf"{name} is 0\.999 and moments bfloat16: .*lower {name} to 0\.99"):
            OptimizerSettings.model_validate({"moments": "bfloat16", name: 0.999})
    OptimizerSettings.model_validate({"moments": "bfloat16", "beta2": 0.99})
