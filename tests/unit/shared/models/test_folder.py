"""Model folders that are broken, each refused in one line that names the file, before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from services.cli.main import main
from shared.errors import CorruptDataError, NotFoundError, RouterShiftError
from shared.models.folder import check_folder, copy_descriptions
from tests.support.generation import save_chat_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "model")


def changed(name: str, **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))

    return change


def replaced(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


# What is done to a folder, which class refuses it, and what it says.
_C, _M = CorruptDataError, NotFoundError
BROKEN: dict[str, tuple[Callable[[Path], object], type[RouterShiftError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), _M, "no config.json"),
    "config no json": (replaced("config.json", "{"), _C, "config.json is not JSON"),
    "config empty": (replaced("config.json", ""), _C, "config.json is not JSON"),
    "config a list": (replaced("config.json", "[]"), _C, "config.json holds list"),
    "config a pointer": (replaced("config.json", POINTER), _C, "config.json is a Git LFS pointer"),
    "eos empty": (changed("config.json", eos_token_id=[]), _C, "config.json: eos_token_id is []"),
    "eos text": (changed("config.json", eos_token_id="</s>"), _C, "eos_token_id is '</s>'"),
    "eos of generation": (
        changed("generation_config.json", eos_token_id=[-1]),
        _C,
        "generation_config.json: eos_token_id is [-1]",
    ),
    "generation config": (replaced("generation_config.json", "x"), _C, "generation_config.json is not JSON"),
    "index without keys": (replaced(INDEX, "{}"), _C, f"{INDEX} has no object 'weight_map'"),
    "index of nothing": (changed(INDEX, weight_map={}), _C, f"{INDEX} has no object 'weight_map'"),
    "index no json": (replaced(INDEX, "x"), _C, f"{INDEX} is not JSON"),
    "index of numbers": (changed(INDEX, weight_map={"a": 1}), _C, "weight_map['a'] is 1"),
    "index outside": (changed(INDEX, weight_map={"a": "../x"}), _C, "weight_map['a'] is '../x'"),
    "missing shard": (changed(INDEX, weight_map={"a": "b.safetensors"}), _M, "has no b.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), _M, "has no model.safetensors"),
    "weights a pointer": (
        replaced("model.safetensors", POINTER),
        _C,
        "model.safetensors is a Git LFS pointer",
    ),
    "weights empty": (replaced("model.safetensors", ""), _C, "model.safetensors is not a whole"),
    "weights cut off": (cut, _C, "model.safetensors is not a whole"),
    "tokenizer empty": (replaced("tokenizer.json", "{}"), _C, "tokenizer.json has no object 'model'"),
    "tokenizer a pointer": (replaced("tokenizer.json", POINTER), _C, "tokenizer.json is a Git LFS pointer"),
    "tokenizer config": (replaced("tokenizer_config.json", "{,"), _C, "tokenizer_config.json is not JSON"),
    "template a pointer": (replaced("chat_template.jinja", POINTER), _C, "chat_template.jinja is a Git LFS"),
}


@pytest.mark.parametrize(("spoil", "kind", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused_by_the_check_and_by_the_command(
    folder: Path, spoil: Callable[[Path], object], kind: type[RouterShiftError], text: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoil(folder)
    with pytest.raises(kind) as caught:
        check_folder(folder)
    assert text in str(caught.value)
    for command in (["serve", "generation"], ["serve", "learner"], ["run", "deploy/recipes/countdown.toml"]):
        capfd.readouterr()
        assert main([*command, "--set", f"run.model={folder}", "--set", f"run.folder={folder.parent}"]) == 2
        said = capfd.readouterr().err.splitlines()
        assert [line for line in said if "starting" not in line] == said[-1:]
        assert text in said[-1]


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder)


def test_descriptions_are_all_that_a_tokenizer_needs(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "v00000001"
    to.mkdir()
    copy_descriptions(folder, to)
    theirs, ours = (AutoTokenizer.from_pretrained(each) for each in (folder, to))
    assert ours.encode("3,7:10") == theirs.encode("3,7:10")
    assert ours.chat_template == theirs.chat_template
    assert json.loads((to / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert not (to / "model.safetensors").exists()
