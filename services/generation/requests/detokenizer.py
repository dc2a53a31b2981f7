"""The text of a response that comes in pieces."""

from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"  # what the bytes of a character decode to before the last of them has come


class TextStream:
    """Decodes one sample's tokens as they come, so that the texts of the pieces add up to the text of the whole.

    A token's text may depend on its predecessor, so the tokens of the last text are decoded again with the next ones.
    Bytes that are not yet a character wait for the rest of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # those of the last text, then those without a text
        self._told = 0  # of them, those of the last text

    def add(self, tokens: list[int], *, last: bool) -> str:
        """The text that these tokens add, without special tokens; with all that is left where they are the last."""
        self._tokens += tokens
        before = self._decode(self._tokens[: self._told])
        text = self._decode(self._tokens)
        if not last and (len(text) <= len(before) or text.endswith(_INCOMPLETE)):
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
