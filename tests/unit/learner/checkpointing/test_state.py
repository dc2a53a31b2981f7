"""State on disk: every bit comes back, on any number of ranks, and nothing is pickled."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.learner.checkpointing import snapshot, state
from services.learner.checkpointing.checkpoint import FORMAT, STATE
from services.learner.checkpointing.snapshot import Snapshot
from services.learner.distributed.fsdp import shard
from services.learner.distributed.ranks import Ranks
from services.learner.model.optimizer import AdamW
from services.learner.model.settings import OptimizerSettings
from shared.errors import InvalidInputError
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.rollouts import load
from tests.support.sharded import full_state_dict

BASELINE = torch.tensor([0.1, -0.2, 3e-30])
META = {"step": 7, "groups": ["a", "b"]}


def save(folder: Path, ranks: Ranks, *held: Any) -> None:
    made = Snapshot(ranks, *held)
    if ranks.rank:
        made.follow()
        return
    with closing(made):
        made.write(folder)


class Held:
    """A model after two updates, on one or several ranks; all of it is random."""

    def __init__(self, folder: Path, ranks: Ranks, seed: int = 0) -> None:
        self.ranks = ranks
        self.model = load(folder)
        shard(self.model, ranks)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = AdamW(self.parameters.values(), OptimizerSettings(learning_rate=1e-3))
        self.baseline = BASELINE.clone()
        ids = torch.randint(2, 20, (2, 9), generator=torch.Generator().manual_seed(seed))
        for _ in range(2):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.model(ids).logits.square().mean())
            self.optimizer.step()

    def save(self, folder: Path) -> None:
        if self.ranks.rank == 0:
            folder.mkdir(exist_ok=True)
        self.ranks.broadcast(b"made")
        tensors = {"baseline": self.baseline}
        save(folder, self.ranks, self.parameters, self.optimizer, tensors, META)

    def load(self, folder: Path) -> None:
        self.baseline.zero_()
        tensors = {"baseline": self.baseline}
        assert state.load(folder, self.ranks, self.parameters, self.optimizer, tensors) == META

    def everything(self) -> dict[str, Tensor]:
        """Whole, on rank 0; a copy."""
        found = full_state_dict(self.model, self.ranks)
        for field in ("exp_avg", "exp_avg_sq", "step"):
            holder = nn.Module()
            for i, parameter in enumerate(self.parameters.values()):
                holder.register_buffer(f"{field}{i}", self.optimizer.state[parameter][field])
            found |= full_state_dict(holder, self.ranks)
        return {name: tensor.clone() for name, tensor in (found | {"baseline": self.baseline}).items()}


def part(ranks: Ranks, folder: str) -> None:
    """Leaves `many`, what several ranks have and what they saved of it, and `again`, what they loaded from `one`."""
    one, many, again, blocked = (Path(folder, name) for name in ("one", "many", "again", "blocked"))
    held = Held(Path(folder, "model"), ranks, seed=1)
    held.save(many)
    expected = held.everything()
    held.load(one)
    held.save(again)
    if ranks.rank:
        held.save(blocked)
    else:
        save_file(expected, Path(folder, "many.safetensors"))
        # A disk that one rank cannot write to. Rank 0 says so, and all can go on.
        (blocked / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)
        with pytest.raises(IsADirectoryError, match=r"rank 1: Is a directory: .*shard-00002"):
            held.save(blocked)
    held.load(many)


def test_state_comes_back_bit_for_bit_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Two experts on three ranks: a rank without any, and shards of different sizes."""
    alone = Held(save_model(tmp_path / "model", num_experts=2, num_experts_per_tok=1), Ranks.open())
    alone.save(tmp_path / "one")
    expected = alone.everything()
    torchrun.run(3, part, tmp_path)
    alone.load(tmp_path / "many")
    assert_same(alone.everything(), load_file(tmp_path / "many.safetensors"))
    assert not torch.equal(alone.everything()["exp_avg0"], expected["exp_avg0"])
    alone.load(tmp_path / "again")
    assert_same(alone.everything(), expected)
    assert {path.suffix for path in tmp_path.glob("*/*") if path.parent.name in {"one", "many"}} == {
        ".safetensors",
        ".json",
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_large_state_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_FILE_BYTES", 100_000)
    held = Held(save_model(tmp_path / "model"), Ranks.open())
    expected = held.everything()
    held.save(tmp_path / "saved")
    sizes = [path.stat().st_size for path in (tmp_path / "saved").glob("*.safetensors")]
    assert len(sizes) > 10
    largest = max(parameter.nbytes for parameter in held.parameters.values())
    assert max(sizes) < 100_000 + largest + 10_000
    with torch.no_grad():
        for parameter in held.parameters.values():
            parameter.zero_()
    held.load(tmp_path / "saved")
    assert_same(held.everything(), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_state_before_the_first_update_is_none(tmp_path: Path, fused: bool) -> None:
    parameters = {"weight": nn.Parameter(torch.randn(3))}
    optimizer = AdamW(parameters.values(), OptimizerSettings(fused=fused))
    save(tmp_path, Ranks.open(), parameters, optimizer, {}, {})
    torch.autograd.backward(parameters["weight"].sum())
    optimizer.step()
    assert state.load(tmp_path, Ranks.open(), parameters, optimizer, {}) == {}
    assert not optimizer.state
    optimizer.step()


def test_state_of_another_model_or_of_other_settings_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    def made(shape: int, **tensors: Tensor) -> tuple[dict[str, Tensor], AdamW, dict[str, Tensor]]:
        parameters = {"weight": nn.Parameter(torch.ones(shape)), "bias": nn.Parameter(torch.ones(1))}
        return dict(parameters), AdamW(parameters.values(), OptimizerSettings()), tensors

    save(tmp_path, Ranks.open(), *made(3, baseline=BASELINE), META)
    for other in (made(4, baseline=BASELINE), made(3), made(3, baseline=BASELINE, other=BASELINE)):
        other[0]["bias"].data.zero_()
        with pytest.raises(InvalidInputError, match=r"of another model or other settings: (parameters|tensors)/"):
            state.load(tmp_path, Ranks.open(), *other)
        assert other[0]["bias"] == 0


def test_a_checkpoint_of_a_later_version_is_refused_and_one_without_a_format_is_read(tmp_path: Path) -> None:
    parameters = {"weight": nn.Parameter(torch.ones(3))}
    optimizer = AdamW(parameters.values(), OptimizerSettings())
    save(tmp_path, Ranks.open(), parameters, optimizer, {}, META)
    assert state.load(tmp_path, Ranks.open(), parameters, optimizer, {}) == META  # which says none
    (tmp_path / STATE).write_text(json.dumps({**META, "format": FORMAT + 1}))
    with pytest.raises(InvalidInputError, match=r"has format 2, and this version reads up to 1: a later one"):
        state.about(tmp_path)
