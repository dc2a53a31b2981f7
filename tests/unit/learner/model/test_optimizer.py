"""AdamW by slices: the bits of torch's, moments in fewer bytes, and what an update takes for itself."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.learner.model import settings as table
from services.learner.model.moments import MOMENTS, read
from services.learner.model.optimizer import AdamW
from services.learner.model.settings import OptimizerSettings
from shared.errors import MissingDependencyError
from tests.bench.memory import peak_bytes

SHAPE = 64, 256  # whole blocks, so that moments may be bytes
LEAST = 1 << 20  # update_bytes


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def settings(**changes: Any) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"learning_rate": 1e-2, "weight_decay": 0.1, **changes})


def updated(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], updates: int) -> list[Tensor]:
    """How far parameters are moved by gradients of many sizes; the last has none."""
    begin = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        for parameter in parameters[:-1]:
            scale = torch.logspace(-6, 0, len(parameter))  # alike in a block
            scale = scale.view(-1, *[1] * (parameter.ndim - 1))
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        optimizer.step()
    return [parameter.detach() - before for parameter, before in zip(parameters, begin, strict=True)]


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in (*shapes, (2,))]


@pytest.mark.parametrize("offload", ["none", "moments"])
@pytest.mark.parametrize("fused", [False, True])
def test_slices_have_the_bits_of_torchs_adamw(fused: bool, offload: str) -> None:
    """One parameter of many slices, one of a part of a slice, one of a single value."""
    chosen = settings(fused=fused, offload=offload, update_bytes=LEAST)
    theirs, ours = (parameters((1000, 300), (7, 5), (1,)) for _ in range(2))
    expected = updated(torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=fused), theirs, 5)
    optimizer = AdamW(ours, chosen)
    for here, there in zip(updated(optimizer, ours, 5), expected, strict=True):
        assert torch.equal(here, there)
    assert ours[-1] not in optimizer.state
    assert float(optimizer.state[ours[0]]["step"]) == 5


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("moments", "bound"), [("bfloat16", 0.006), ("uint8", 0.06)])
def test_narrow_moments_are_near_those_in_float32(moments: str, bound: float, fused: bool) -> None:
    wide, narrow = parameters(SHAPE, (3, 5)), parameters(SHAPE, (3, 5))
    reference, optimizer = AdamW(wide, settings(fused=fused)), AdamW(narrow, settings(fused=fused, moments=moments))
    moved, expected = updated(optimizer, narrow, 60), updated(reference, wide, 60)
    assert 0 < relative(moved[0], expected[0]) < bound
    state = optimizer.state[narrow[0]]
    for name in MOMENTS:
        assert state[name].dtype == getattr(torch, moments)
        flat = {field: tensor.flatten() for field, tensor in state.items()}
        assert 0 < relative(read(flat, name), reference.state[wide[0]][name].flatten()) < bound, name
    small = torch.float32 if moments == "uint8" else torch.bfloat16
    assert optimizer.state[narrow[1]]["exp_avg"].dtype == small


@pytest.mark.usefixtures("torchao")
def test_bytes_are_those_of_torchaos_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    optim = importlib.import_module("torchao.optim")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # minutes, for the same arithmetic
    theirs, ours = parameters(SHAPE), parameters(SHAPE)
    reference = optim.AdamW8bit(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = AdamW(ours, settings(moments="uint8"))
    moved, expected = updated(optimizer, ours, 20), updated(reference, theirs, 20)
    assert relative(moved[0], expected[0]) < 1e-3
    held, known = optimizer.state[ours[0]], reference.state[theirs[0]]
    for name in MOMENTS:
        assert (held[name] != known[name].codes).float().mean() < 1e-3
        torch.testing.assert_close(held[f"{name}_scale"].flatten(), known[name].scale, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("moments", ["float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("offload", ["none", "moments"])
def test_an_update_takes_no_more_than_it_may(moments: str, offload: str) -> None:
    """Beyond weights, gradients and moments, whatever the size of a parameter."""
    few = parameters((1 << 11, 256))
    optimizer = AdamW(few, settings(moments=moments, offload=offload, update_bytes=LEAST))
    updated(optimizer, few, 1)
    taken = peak_bytes(optimizer.step, torch.device("cpu"), 0)
    assert LEAST // 2 < taken < LEAST * 1.05
    whole = AdamW(few, settings(moments=moments, offload=offload, update_bytes=1 << 40))
    updated(whole, few, 1)
    assert peak_bytes(whole.step, torch.device("cpu"), 0) > 3 * LEAST


def test_betas_that_rounding_would_undo_are_refused() -> None:
    for moments in ("bfloat16", "uint8"):
        for name in ("beta1", "beta2"):
            said = rf"{name} is 0\.999 and moments {moments}: .*lower {name} to 0\.99"
            with pytest.raises(ValueError, match=said):
                OptimizerSettings.model_validate({"moments": moments, name: 0.999})
        OptimizerSettings.model_validate({"moments": moments, "beta2": 0.99})


def test_bytes_without_torchao_are_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    OptimizerSettings(moments="bfloat16").check("bfloat16")
    with pytest.raises(MissingDependencyError, match=r"torchao is not installed; pip install 'routershift\[torchao\]'"):
        OptimizerSettings(moments="uint8").check("bfloat16")
