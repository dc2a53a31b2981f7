"""A model read by parts is what transformers makes of the folder, bit for bit; a rank reads only its shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel

from shared.models import streaming
from shared.models.loading import load_config
from shared.models.streaming import Parts, local_part
from tests.support.models import KINDS, LAYERS, save_model
from tests.support.rollouts import load


class Counting:
    """Files whose slices count what is read of them."""

    def __init__(self) -> None:
        self.bytes = 0

    def open(self, path: Path, framework: str) -> "File":
        return File(safe_open(path, framework), self)


class File:
    def __init__(self, file: Any, counting: Counting) -> None:
        self._file = file
        self._counting = counting

    def __enter__(self) -> "File":
        self._opened = self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def keys(self) -> list[str]:
        names: list[str] = self._opened.keys()
        return names

    def get_slice(self, name: str) -> "Slice":
        return Slice(self._opened.get_slice(name), self._counting)


class Slice:
    def __init__(self, held: Any, counting: Counting) -> None:
        self._held = held
        self._counting = counting

    def get_shape(self) -> list[int]:
        shape: list[int] = self._held.get_shape()
        return shape

    def get_dtype(self) -> str:
        return str(self._held.get_dtype())

    def __getitem__(self, index: Any) -> Tensor:
        found: Tensor = self._held[index]
        self._counting.bytes += found.nbytes
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_model(kind: str, tmp_path: Path) -> None:
    whole = load(save_model(tmp_path, kind))
    weights = {name for name, _ in whole.named_parameters()}
    expected = dict((*whole.named_parameters(), *whole.named_buffers()))
    parts = Parts(load_config(tmp_path), tmp_path)
    seen: set[str] = set()
    for layer in (*range(LAYERS), None):
        with parts.read(layer, {}) as found:
            assert all((f"layers.{layer}." in name) == (layer is not None) for name in found.keys() & weights)
            for name, tensor in found.items():
                assert torch.equal(tensor, expected[name]), name
            seen |= found.keys()
    assert seen == expected.keys()


@contextmanager
def mesh_of(rank: int, size: int) -> Iterator[DeviceMesh]:
    """As one rank of several sees it, which never meets the others."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (size,), mesh_dim_names=("shard",))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_reads_its_shards_and_no_more(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three, the first of four, and the last of sixteen, which has no expert. torch remembers the place in
    a mesh by its size, so no two have the same."""
    whole = load(save_model(tmp_path, kind))
    for rank, size in ((2, 3), (0, 4), (15, 16)):
        with mesh_of(rank, size) as mesh:
            check_read(whole, mesh, tmp_path, monkeypatch)


def check_read(whole: PreTrainedModel, mesh: DeviceMesh, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like: dict[str, Tensor] = dict(whole.named_buffers())
    for name, parameter in whole.named_parameters():
        like[name] = distribute_tensor(torch.empty_like(parameter, device="meta"), mesh, [Shard(0)])
    counting = Counting()
    monkeypatch.setattr(streaming, "safe_open", counting.open)
    parts, held = Parts(load_config(folder), folder), 0
    seen: set[str] = set()
    for layer in (*range(LAYERS), None):
        with parts.read(layer, like) as found:
            for name, tensor in found.items():
                wanted, expected = like[name], whole.state_dict(keep_vars=True).get(name)
                if isinstance(wanted, DTensor):
                    assert expected is not None
                    assert torch.equal(tensor, local_part(expected, wanted)), name
                    held += tensor.nbytes
            seen |= found.keys()
    empty = {name for name, tensor in like.items() if isinstance(tensor, DTensor) and not tensor.to_local().numel()}
    assert seen | empty == like.keys()
    persistent = sum(whole.state_dict()[name].nbytes for name, _ in whole.named_buffers() if name in whole.state_dict())
    assert counting.bytes <= held + persistent
