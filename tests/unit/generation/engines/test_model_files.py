"""What an engine reads from the headers of a model's files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from services.generation.engines.model_files import check_shapes, check_weights
from shared.errors import CorruptDataError, InvalidInputError, NotFoundError
from shared.models.folder import tensor_shapes, weight_files


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    for shard, name in (("a.safetensors", "gate"), ("b.safetensors", "head")):
        save_file({name: np.zeros((2, 3), dtype=np.float32)}, tmp_path / shard)
    index = {"weight_map": {"gate": "a.safetensors", "head": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_all_shards_are_read(sharded: Path) -> None:
    assert tensor_shapes(weight_files(sharded)) == {"gate": (2, 3), "head": (2, 3)}


def test_files_beside_the_index_do_not_count(sharded: Path) -> None:
    save_file({"adapter": np.zeros(1, dtype=np.float32)}, sharded / "adapter.safetensors")
    assert [file.name for file in weight_files(sharded)] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("missing", ["config.json", "b.safetensors"])
def test_a_missing_file_is_named(sharded: Path, missing: str) -> None:
    (sharded / missing).unlink()
    with pytest.raises(NotFoundError, match=missing):
        weight_files(sharded)


def test_a_folder_without_weights_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        weight_files(tmp_path)


def test_a_cut_off_file_is_corrupt(sharded: Path) -> None:
    whole = (sharded / "a.safetensors").read_bytes()
    (sharded / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CorruptDataError, match=r"a\.safetensors"):
        tensor_shapes(weight_files(sharded))


@pytest.mark.parametrize("found", [{}, {"gate": (2, 4)}, {"gate": (2, 3), "more": (1,)}, {"gates": (2, 3)}])
def test_tensors_that_differ_are_refused(found: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(InvalidInputError, match=r"gate|more"):
        check_shapes({"gate": (2, 3)}, found)


def test_equal_tensors_pass() -> None:
    check_shapes({"gate": (2, 3), "head": (4,)}, {"head": (4,), "gate": (2, 3)})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    tensors = {"gate": torch.zeros(3, 4, dtype=dtype), "head": torch.zeros(5, dtype=dtype)}
    tensors["gate"][1, 2] = bad
    file = tmp_path / "model.safetensors"
    save_torch(tensors, file)
    with pytest.raises(InvalidInputError, match=r"gate .*NaN or infinity"):
        check_weights({"gate": (3, 4), "head": (5,)}, [file])


def test_large_numbers_are_finite(tmp_path: Path) -> None:
    """Their sum is not."""
    file = tmp_path / "model.safetensors"
    save_torch({"gate": torch.full((8,), 3e38), "steps": torch.ones(2, dtype=torch.int64)}, file)
    check_weights({"gate": (8,), "steps": (2,)}, [file])
