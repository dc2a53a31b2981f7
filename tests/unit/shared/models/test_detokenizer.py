"""Texts of pieces add up to the text of the whole, whatever a model samples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.models.detokenizer import TextStream, pieces, text
from tests.support.tokenizers import TOKENIZERS, WORDS, spelt


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_add_up(name: str, data: st.DataObject) -> None:
    """Words, cut characters, single bytes, special tokens and ids beyond the vocabulary, in pieces of any size."""
    tokenizer = TOKENIZERS[name]
    word = st.sampled_from(WORDS).map(lambda word: spelt(name, word))
    cut = word.flatmap(lambda tokens: st.integers(0, len(tokens)).map(lambda end: tokens[:end]))
    others = st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=3)
    tokens = [token for part in data.draw(st.lists(word | cut | others, max_size=20)) for token in part]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=len(tokens))))
    stream = TextStream(tokenizer)
    pieces = [
        stream.add(tokens[begin:end], last=False) for begin, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)
    ]
    assert "".join([*pieces, stream.add([], last=True)]) == tokenizer.decode(tokens)


def test_a_character_that_is_cut_makes_its_whole_run_of_bytes_unreadable() -> None:
    """So that nothing of a run may be told before its end."""
    tokenizer, tokens = TOKENIZERS["byte-fallback"], [*spelt("byte-fallback", "你"), *spelt("byte-fallback", "好")[:2]]
    whole = tokenizer.decode(tokens)
    assert whole == "\ufffd" * 5
    stream = TextStream(tokenizer)
    assert "".join(stream.add([token], last=i == len(tokens) - 1) for i, token in enumerate(tokens)) == whole


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_comes_as_soon_as_it_is_settled(name: str) -> None:
    stream = TextStream(TOKENIZERS[name])
    letter, other = spelt(name, "m")[0], spelt(name, "b")[0]
    assert stream.add([letter], last=False) == "m"
    bytes_of = spelt(name, "😀😀")
    assert "".join(stream.add([token], last=False) for token in bytes_of) in ("😀😀", "")
    assert stream.add([other], last=False) in ("b", "😀😀b")


def test_many_broken_characters_are_not_decoded_again_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    half = spelt("byte-level", "é")[0]
    stream, decoded = TextStream(TOKENIZERS["byte-level"]), 0
    decode = stream._decode

    def counted(tokens: list[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return decode(tokens)

    monkeypatch.setattr(stream, "_decode", counted)
    count = 20_000
    pieces = [stream.add([half], last=i == count - 1) for i in range(count)]
    assert "".join(pieces) == decode([half] * count)
    assert decoded < 20 * count


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_each_token_has_its_piece_of_the_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ordinary = st.integers(2, tokenizer.get_vocab_size() + 1)  # below are the special ones
    tokens = data.draw(st.lists(ordinary, max_size=20))
    found = pieces(tokenizer, tokens)
    assert len(found) == len(tokens)
    assert "".join(found) == tokenizer.decode(tokens)


def test_special_tokens_stand_in_the_pieces_and_no_tokenizer_makes_numbers() -> None:
    tokens = [*spelt("byte-level", "ab"), 1]
    assert pieces(TOKENIZERS["byte-level"], tokens)[-1] == "<eos>"
    assert text(TOKENIZERS["byte-level"], tokens) == "ab<eos>"
    assert pieces(None, [5, 7]) == ("<5>", "<7>")
    assert text(None, [5, 7]) == "<5><7>"
