"""Token ids equal those of transformers for the same folder, and broken tokenizers are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from shared.errors import CorruptDataError, NotFoundError
from shared.models.tokenizer import load_tokenizer, read_tokenizer
from tests.support.tokenizers import TOKENIZERS

TEXT = "the cat <tool> ab<eos> 你好 <|im_end|> b"
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast"}


def added(content: str, **changes: Any) -> dict[str, Any]:
    return {
        "content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
        "special": True,
    } | changes  # fmt: skip


TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<unk>",
}  # fmt: skip
# What stands beside the model of tokenizer.json, and what in other files.
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing else": ({}, {}),
    "truncation": ({"truncation": TRUNCATION}, {"tokenizer_config.json": TOKENIZER}),
    "padding": ({"padding": PADDING}, {"tokenizer_config.json": TOKENIZER}),
    "truncation and padding": ({"truncation": TRUNCATION, "padding": PADDING}, {}),
    "added_tokens_decoder": (
        {},
        {"tokenizer_config.json": TOKENIZER | {"added_tokens_decoder": {"290": added("<tool>", special=False)}}},
    ),
    "special_tokens_map.json": (
        {},
        {
            "tokenizer_config.json": TOKENIZER,
            "special_tokens_map.json": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<tool>"]},
        },
    ),
    "added_tokens.json": (
        {},
        {"tokenizer_config.json": TOKENIZER, "added_tokens.json": {"<tool>": 290, "<|im_end|>": 291}},
    ),
    "names of special tokens": (
        {},
        {"tokenizer_config.json": TOKENIZER | {"eos_token": "<|im_end|>", "pad_token": "<tool>"}},
    ),
    "split_special_tokens": ({}, {"tokenizer_config.json": TOKENIZER | {"split_special_tokens": True}}),
}


def write(folder: Path, tokenizer: Tokenizer, sections: dict[str, Any], files: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_token_ids_are_those_of_transformers(
    tmp_path: Path, kind: str, folder: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    write(tmp_path, TOKENIZERS[kind], *folder)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    assert ours is not None
    for special in (True, False):
        ids = theirs(TEXT, add_special_tokens=special)["input_ids"]
        assert ours.encode(TEXT, add_special_tokens=special).ids == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(ours.encode(TEXT).ids) > 5


def test_a_token_of_another_file_is_one_token(tmp_path: Path) -> None:
    """Else the test above could hold of a folder that transformers reads as it reads tokenizer.json alone."""
    write(tmp_path, TOKENIZERS["byte-level"], *FOLDERS["special_tokens_map.json"])
    ours = read_tokenizer(tmp_path)
    assert ours is not None
    assert len(ours.encode("<|im_end|>").ids) == 1
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(alone.encode("<|im_end|>").ids) > 1


def test_code_of_a_folder_is_not_run(tmp_path: Path) -> None:
    config = TOKENIZER | {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
    write(tmp_path, TOKENIZERS["byte-level"], {}, {"tokenizer_config.json": config})
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    assert load_tokenizer(tmp_path).is_fast
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", ""),
        ("tokenizer.json", '{"model": {"type": "BPE"}, "added_tokens": []}'),
        ("tokenizer.json", '{"model": {"type": "Nonsense", "vocab": {}}, "added_tokens": []}'),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"),
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"),
        ("added_tokens.json", "[1"),
    ],
)
def test_a_broken_tokenizer_is_named(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, TOKENIZERS["byte-level"], {}, {"tokenizer_config.json": TOKENIZER})
    (tmp_path / name).write_text(content)
    with pytest.raises(CorruptDataError, match=name.replace(".", r"\.")) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)
    assert read_tokenizer(tmp_path) is None


def test_a_word_level_tokenizer_without_configuration(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    write(tmp_path, tokenizer, {}, {})
    ours = read_tokenizer(tmp_path)
    assert ours is not None
    assert ours.encode("a b a").ids == [0, 1, 0]
