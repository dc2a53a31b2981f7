"""A model folder that brings code of its own: it is never run, nobody is asked, and the reason is said."""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from services.generation.engines.torch.model import load_folder
from services.learner.model.policy import load
from services.reward.verifiers.model import ModelSettings, ModelVerifier
from shared.errors import PreconditionError
from shared.models import loading
from shared.models.tensors import model_tensors
from shared.models.tokenizer import load_tokenizer
from tests.support.models import save_model
from tests.support.settings import learner_settings

REPOSITORY = Path(__file__).parents[4]
CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""

Change = Callable[[Path], None]


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def own_architecture(folder: Path) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit(folder / "config.json", model_type="own", architectures=["OwnModel"], auto_map=auto_map)


def own_model_of_a_known_config(folder: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "own.OwnModel", "AutoModelForSequenceClassification": "own.OwnModel"}
    edit(folder / "config.json", model_type="vit", architectures=["OwnModel"], auto_map=auto_map)


def own_tokenizer(folder: Path) -> None:
    tokenizer = folder / "tokenizer_config.json"
    edit(tokenizer, tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
    own_architecture(folder)


def kernel_of_the_hub(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/their-kernel")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the code of a folder would make. Whoever asks on the terminal is told yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "ran"


def folder_with_code(tmp_path: Path, marker: Path, change: Change) -> Path:
    folder = save_model(tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    change(folder)
    return folder


LOADERS: dict[str, Callable[[Path], Any]] = {
    "the learner": lambda folder: load(folder, learner_settings()),
    "the learner's other ranks": lambda folder: load(folder, learner_settings(), is_empty=True),
    "the torch engine": lambda folder: load_folder(folder, "cpu"),
    "what is read before vLLM starts": model_tensors,
    "a config": loading.load_config,
    "a verifier": lambda folder: ModelVerifier(ModelSettings(model=folder))._loaded,
}


@pytest.mark.parametrize("change", [own_architecture, own_model_of_a_known_config, kernel_of_the_hub])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_code_of_a_model_folder_is_run_or_asked_for(
    tmp_path: Path, marker: Path, loader: str, change: Change
) -> None:
    folder = folder_with_code(tmp_path, marker, change)
    if loader == "a config" and change is own_model_of_a_known_config:
        loading.load_config(folder)
    else:
        with pytest.raises(PreconditionError, match="code"):
            LOADERS[loader](folder)
    assert not marker.exists()


@pytest.mark.parametrize("factory", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("change", [own_architecture, own_model_of_a_known_config])
def test_the_reason_names_the_folder_and_the_file(tmp_path: Path, marker: Path, factory: Any, change: Change) -> None:
    folder = folder_with_code(tmp_path, marker, change)
    with pytest.raises(PreconditionError) as caught:
        loading.load_model(factory, folder)
    assert f"model folder {folder} asks to run code of its own (auto_map in config.json)" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)
    assert not marker.exists()


def test_a_tokenizer_with_code_is_refused(tmp_path: Path, marker: Path) -> None:
    folder = folder_with_code(tmp_path, marker, own_tokenizer)
    with pytest.raises(PreconditionError, match=r"auto_map in config\.json, auto_map in tokenizer_config\.json"):
        load_tokenizer(folder)
    assert not marker.exists()


def test_code_for_sampling_beside_a_known_model_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = folder_with_code(tmp_path, marker, lambda folder: (folder / "custom_generate").mkdir())
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)) + "\ngenerate = print\n")
    for loader in ("the learner", "the torch engine"):
        LOADERS[loader](folder)
    assert not marker.exists()


def test_a_known_model_that_also_brings_code_is_loaded_without_it(tmp_path: Path, marker: Path) -> None:
    def also(folder: Path) -> None:
        edit(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})

    folder = folder_with_code(tmp_path, marker, also)
    assert load_folder(folder, "cpu").model.config.model_type == "qwen3_moe"
    assert load(folder, learner_settings())[0].config.model_type == "qwen3_moe"
    assert not marker.exists()


@pytest.mark.parametrize("service", ["generation", "learner"])
def test_a_service_ends_with_code_2_and_the_reason_though_stdin_says_yes(
    tmp_path: Path, redis_url: str, service: str
) -> None:
    marker = tmp_path / "ran"
    folder = folder_with_code(tmp_path, marker, own_architecture)
    flags = [
        "run.id=code", f"run.folder={tmp_path}", f"run.model={folder}", "generation.engine=torch",
        f"{service}.port=0", f"{service}.metrics_port=0",
    ]  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "serve", service, *(p for f in flags for p in ("--set", f))],
        env=os.environ | {"REDIS_URL": redis_url},
        input="y\n" * 100,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert "asks to run code of its own (auto_map in config.json)" in found.stderr.splitlines()[-1]
    assert "[y/N]" not in found.stdout
    assert not marker.exists()


def test_transformers_loads_in_one_place_alone() -> None:
    """A `from_pretrained` elsewhere would have to remember to run no code."""
    loads = {"from_pretrained", "from_config"}
    calls = {
        str(file.relative_to(REPOSITORY))
        for package in ("services", "shared", "proto/routershift")
        for file in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in loads
    }
    assert calls == {"shared/models/loading.py"}
