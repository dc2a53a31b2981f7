"""The text of a response that comes in pieces."""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from shared.models.tokenizer import special_ids, special_texts

_INCOMPLETE = "\ufffd"  # what the bytes of a character decode to before the last of them has come
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of byte fallback, as of Llama-2 and Mixtral
# Tokens held back above which the text is looked at only when it has grown by a quarter: each look decodes all of them.
_FEW = 32


class TextStream:
    """Decodes one sample's tokens as they come, so that the texts of the pieces add up to the text of the whole.

    A token's text may depend on its predecessor, so the tokens of the last text are decoded again with the next ones.
    Bytes that are not yet a character wait for the rest of it. Tokens of byte fallback wait for the end of their run:
    one byte that fits nothing makes every byte of the run a replacement character.
    """

    def __init__(self, tokenizer: Tokenizer, *, with_special: bool = False) -> None:
        """Args: with_special: whether special tokens are text too."""
        self._tokenizer = tokenizer
        self._skips = not with_special
        self._special = special_ids(tokenizer)
        self._in_run = False  # the last token that is text is a byte, special tokens left out
        self._tokens: list[int] = []  # those of the last text, then those without a text
        self._told = 0  # of them, those of the last text
        self._next_look = 0  # tokens without a text at which to look again

    def add(self, tokens: list[int], *, last: bool) -> str:
        """The text that these tokens add; with all that is left where they are the last."""
        self._tokens += tokens
        for token in tokens:
            if token not in self._special and (name := self._tokenizer.id_to_token(token)) is not None:
                self._in_run = _BYTE.fullmatch(name) is not None
        if not last and (self._in_run or len(self._tokens) - self._told < self._next_look):
            return ""
        before = self._decode(self._tokens[: self._told])
        text = self._decode(self._tokens)
        if not last and (len(text) <= len(before) or text.endswith(_INCOMPLETE)):
            waiting = len(self._tokens) - self._told
            self._next_look = waiting + waiting // 4 if waiting > _FEW else 0
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        self._next_look = 0
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skips))


def pieces(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds, special tokens by their names; "" where the bytes of a character go on.

    Without a tokenizer, a token is its number in angle brackets.
    """
    if tokenizer is None:
        return tuple(f"<{token}>" for token in tokens)
    stream, special = TextStream(tokenizer), special_texts(tokenizer)
    last = len(tokens) - 1
    return tuple(stream.add([token], last=i == last) + special.get(token, "") for i, token in enumerate(tokens))


def text(tokenizer: Tokenizer | None, tokens: Sequence[int]) -> str:
    """Whole, with special tokens by their names; without a tokenizer as above."""
    if tokenizer is None:
        return "".join(pieces(None, tokens))
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))
