"""Stop strings, against the text of the whole response after each token, for the kinds of decoders that models have."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.generation.engines.stopping import StopChecker
from shared.errors import InvalidInputError
from shared.models.tokenizer import read_tokenizer
from tests.support.tokenizers import SPECIAL, TOKENIZERS, WORDS, spelt


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
    part = st.sampled_from(WORDS).map(lambda word: spelt(name, word)) | st.lists(
        st.integers(0, tokenizer.get_vocab_size() + 1), max_size=3
    )
    tokens = [token for word in data.draw(st.lists(part, max_size=20)) for token in word]
    stop = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=2))
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
    for silent in (SPECIAL.index("<eos>"), tokenizer.get_vocab_size() + 5):
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
