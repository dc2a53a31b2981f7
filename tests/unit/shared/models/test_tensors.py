"""The tensors of a model folder, against those that the model made of it has; and what ends its responses."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.generation.engines.torch.model import load_folder
from services.learner.model.policy import load
from shared.errors import CorruptDataError, InvalidInputError, PreconditionError
from shared.models.folder import end_ids, tensor_shapes, weight_files
from shared.models.tensors import model_tensors
from tests.support.models import KINDS, save_model
from tests.support.settings import learner_settings

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def change(folder: Path, **changes: Any) -> None:
    """Sets keys of its config.json."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def replace(folder: Path, more: dict[str, torch.Tensor], without: str = "") -> None:
    """Adds tensors to its weights, and takes one out."""
    # Copies: what is loaded is mapped from the very file that is written.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors.pop(without, None)
    save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_has_its_tensors_and_no_others(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path, kind)
    assert model_tensors(folder) == tensor_shapes(weight_files(folder))


def test_what_the_model_does_not_have_is_ignored_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_model(tmp_path, "qwen3_dense")
    own = model_tensors(folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    more = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(16) for layer in range(3)}
    replace(folder, more | {"lm_head.weight": embedding.clone(), "somebodys.key": torch.ones(1)})
    with caplog.at_level(logging.INFO):
        assert model_tensors(folder) == own
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert "ignored 5 tensors" in line
    assert "lm_head.weight" in line


def test_the_learner_publishes_what_generation_expects_of_a_folder_with_more(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "qwen3_dense")
    replace(folder, {"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()})
    load(folder, learner_settings())[0].save_pretrained(tmp_path / "published")
    assert tensor_shapes(weight_files(tmp_path / "published")) == model_tensors(folder)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (None, f"lacks {Q_PROJ}"),
        (torch.ones(3, 4), rf"{Q_PROJ} is \(3, 4\), expected \(128, 96\)"),
        (torch.ones(128, 96, dtype=torch.int8), f"{Q_PROJ} as I8"),
        (torch.ones(128, 96).to(torch.float8_e4m3fn), f"{Q_PROJ} as F8_E4M3"),
    ],
)
def test_what_it_lacks_is_refused_by_learner_and_engine(tmp_path: Path, tensor: torch.Tensor | None, said: str) -> None:
    folder = save_model(tmp_path)
    replace(folder, {} if tensor is None else {Q_PROJ: tensor}, without=Q_PROJ)
    for start in (lambda folder: load(folder, learner_settings()), lambda folder: load_folder(folder, "cpu")):
        with pytest.raises(InvalidInputError, match=said):
            start(folder)


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3_dense")
    head = load_file(folder / "model.safetensors")["model.embed_tokens.weight"] + 1
    replace(folder, {"lm_head.weight": head})
    with pytest.raises(InvalidInputError, match=r"lm_head\.weight that differs from model\.embed_tokens\.weight"):
        model_tensors(folder)


def test_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    change(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    for start in (lambda folder: load(folder, learner_settings()), lambda folder: load_folder(folder, "cpu")):
        with pytest.raises(PreconditionError, match=r"quantization_config \(quant_method 'fp8'\)"):
            start(folder)


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (2, None, (2,)),
        ([2, 5], None, (2, 5)),
        (2, [2, 15], (2, 15)),
        ([5, 2], 15, (5, 2, 15)),
        (None, [15], (15,)),
        (0, 0, (0,)),
    ],
)
def test_the_ends_of_both_files(tmp_path: Path, config: Any, generation: Any, ends: tuple[int, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert end_ids(tmp_path) == ends


@pytest.mark.parametrize("value", [None, "absent"])
def test_a_model_without_an_end_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({} if value == "absent" else {"eos_token_id": value}))
    (tmp_path / "generation_config.json").write_text("{}")
    with pytest.raises(PreconditionError, match="eos_token_id"):
        end_ids(tmp_path)


@pytest.mark.parametrize("value", ["2", -1, 1.5, True, [2, "3"], {"id": 2}])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CorruptDataError, match=r"generation_config\.json: eos_token_id is .*expected the id"):
        end_ids(tmp_path)
