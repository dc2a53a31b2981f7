"""Stop strings, against the text of the whole response after each token, for the kinds of decoders that models have."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from services.generation.engines.stopping import StopChecker, read_tokenizer
from shared.errors import InvalidInputError

_WORDS = ["</answer>", "你好", "😀😀", "a b", " b", "ab", "\n\n", "é", "好 m", "the cat"]
_SPECIAL = ["<unk>", "<eos>"]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama-3, Qwen and DeepSeek: tokens are bytes of UTF-8, and merges that may split characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(_WORDS)] * 3, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama-2 and Mixtral: spaces belong to words, unknown characters are bytes, the first space goes."""
    pieces = ["▁", "a", "▁a", "b", "▁b", "ab", "</", "answer", ">", "\n", "▁the", "▁cat", "m"]
    vocabulary = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


def spelt(name: str, word: str) -> list[int]:
    tokenizer = TOKENIZERS[name]
    if name == "byte-level":
        return list(tokenizer.encode(word).ids)
    whole = (tokenizer.token_to_id(character if character != " " else "▁") for character in word)
    as_bytes = ([tokenizer.token_to_id(f"<0x{b:02X}>") for b in character.encode()] for character in word)
    ids = (i for one, several in zip(whole, as_bytes, strict=True) for i in (several if one is None else [one]))
    return [i for i in ids if i is not None]


def expected_end(tokenizer: Tokenizer, stop: Sequence[str], tokens: Sequence[int]) -> int | None:
    texts = (tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens)))
    return next((i for i, text in enumerate(texts) if any(string in text for string in stop)), None)


def end_of(checker: StopChecker, tokens: Sequence[int]) -> int | None:
    return next((i for i, token in enumerate(tokens) if checker.feed(token)), None)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_sample_ends_where_its_text_first_holds_a_stop_string(name: str, data: st.DataObject) -> None:
    """Texts of words, single tokens (broken characters among them), special tokens and ids beyond the vocabulary."""
    tokenizer = TOKENIZERS[name]
    part = st.sampled_from(_WORDS).map(lambda word: spelt(name, word)) | st.lists(
        st.integers(0, tokenizer.get_vocab_size() + 1), max_size=3
    )
    tokens = [token for word in data.draw(st.lists(part, max_size=20)) for token in word]
    stop = data.draw(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=2))
    assert end_of(StopChecker(tokenizer, stop), tokens) == expected_end(tokenizer, stop, tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_never_becomes_a_character_is_not_kept_for_ever(name: str) -> None:
    """And what comes after it is judged right, wherever it falls."""
    tokenizer = TOKENIZERS[name]
    half, faces = spelt(name, "é")[0], spelt(name, "😀😀")
    checker = StopChecker(tokenizer, ["😀😀"])
    assert end_of(checker, [half] * 500) is None
    assert len(checker._window) < 50
    for count in range(15, 40):
        tokens = [half] * count + faces * 4
        assert end_of(StopChecker(tokenizer, ["😀😀"]), tokens) == expected_end(tokenizer, ["😀😀"], tokens)


def test_special_tokens_and_ids_beyond_the_vocabulary_are_no_text_however_many() -> None:
    tokenizer = TOKENIZERS["byte-fallback"]
    words = spelt("byte-fallback", "ab")
    for silent in (_SPECIAL.index("<eos>"), tokenizer.get_vocab_size() + 5):
        tokens = [words[0], *[silent] * 40, tokenizer.get_vocab()["▁b"]]
        assert end_of(StopChecker(tokenizer, ["a b"]), tokens) == 41


def test_a_tokenizer_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    with pytest.raises(InvalidInputError, match=r"sampling\.stop is \['a'\].*tokenizer\.json"):
        StopChecker(read_tokenizer(tmp_path), ["a"])
    TOKENIZERS["byte-level"].save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer is not None
    assert end_of(StopChecker(tokenizer, ["好"]), tokenizer.encode("你好").ids) == len(tokenizer.encode("你好").ids) - 1


def test_it_needs_no_torch() -> None:
    """vLLM's child and small tools import it."""
    code = "import services.generation.engines.stopping, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
