"""What the trainer writes: weights that a model folder takes, and checkpoints that go on bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.learner.data.batch import Group
from shared.errors import InvalidInputError
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups
from tests.support.training import make, save, weights


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_moe_dense_first", "qwen3_dense", "qwen2_moe", "mixtral", "olmoe"])
def test_exported_weights_have_the_names_of_the_model_folder(tmp_path: Path, kind: str) -> None:
    """And, untrained, its values; loaded by transformers they are the model."""
    folder = save_model(tmp_path / "model", kind)
    exported = weights(make(folder, algorithm="gmpo"), tmp_path / "out")
    original = load_file(folder / "model.safetensors")
    assert exported.keys() == original.keys()
    for name, tensor in original.items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=0)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, load(folder)(ids).logits)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_dense", "deepseek_v3"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_exported_weights_have_the_dtype_of_the_model_folder(tmp_path: Path, kind: str, lora_rank: int) -> None:
    """The dense model ties its embeddings, so a cast must not write them twice; a correction bias stays float32."""
    save_model(tmp_path / "float32", kind)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "bfloat16")
    exported = weights(make(tmp_path / "bfloat16", algorithm="gmpo", lora={"rank": lora_rank}), tmp_path / "out")
    original = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert exported.keys() == original.keys()
    assert exported["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert {name: t.dtype for name, t in exported.items()} == {name: t.dtype for name, t in original.items()}
    assert all(torch.equal(exported[name], original[name]) for name in original)


def test_a_resumed_trainer_goes_on_bit_for_bit(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "optimizer__learning_rate": 1e-3,
        "epochs": 2,
        "minibatches": 2,
        "optimizer__warmup_steps": 3,
    }
    straight = make(folder, **settings)
    for _ in range(2):
        straight.train_step(stale)
    save(straight, tmp_path, {"groups": ["a", "b"]})
    expected = [dict(straight.train_step(stale).diagnostics) for _ in range(2)]

    resumed = make(folder, **settings)
    resumed.train_step(stale)  # what it held before must not matter
    assert resumed.load(tmp_path) == {"groups": ["a", "b"]}
    assert resumed.step == 2
    assert [dict(resumed.train_step(stale).diagnostics) for _ in range(2)] == expected
    ours, theirs = weights(resumed, tmp_path / "ours"), weights(straight, tmp_path / "theirs")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_before_the_first_step_is_a_start(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    fresh = make(folder, optimizer__learning_rate=1e-3)
    save(fresh, tmp_path, {})
    expected = dict(fresh.train_step(stale).diagnostics)
    used = make(folder, optimizer__learning_rate=1e-3)
    used.train_step(stale)
    used.load(tmp_path)
    assert used.step == 0
    assert dict(used.train_step(stale).diagnostics) == expected


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make(save_model(tmp_path / "other", num_experts=4, num_experts_per_tok=2))
    saved = tmp_path / "saved"
    saved.mkdir()
    save(other, saved, {})
    with pytest.raises(InvalidInputError, match="of another model"):
        make(folder).load(saved)


def test_a_checkpoint_holds_no_pickle(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    trainer = make(folder, optimizer__learning_rate=1e-3)
    trainer.train_step(stale)
    save(trainer, tmp_path, {})
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_the_export_can_be_read_back_as_a_start(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    """A trained export in place of the folder's weights gives the trained policy."""
    trainer = make(folder, optimizer__learning_rate=1e-3)
    trainer.train_step(stale)
    exported = weights(trainer, tmp_path / "out")
    save_file(exported, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    groups = random_groups(load(tmp_path / "out"), groups=2, samples=3, version=1)
    found = trainer.train_step(groups).diagnostics
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
