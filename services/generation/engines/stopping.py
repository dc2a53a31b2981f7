"""When a sample's text ends it: the one rule of stop strings, for both engines.

A sample ends with the token after which the text of its response, decoded without special tokens, holds a stop
string. The string may span tokens, and may end within the last one. Needs no torch: vLLM's child imports it.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from shared.errors import InvalidInputError
from shared.models.tokenizer import special_ids

_REPLACEMENT = "\ufffd"  # what bytes that are no whole character decode to
# Tokens kept where no character ever becomes whole: a character has at most 4 bytes, and a token at least 1.
_UNSETTLED = 8


class StopChecker:
    """Follows one sample, and knows when its text holds a stop string.

    Text is decoded a few tokens at a time: those of the newest characters, after those of the characters before, as a
    token's text may depend on its predecessor. Bytes that are not yet a character wait for the rest of it.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        """
        Args:
            tokenizer: of the model; None where its folder has none.
            stop: strings of at least one character.

        Raises:
            InvalidInputError: there is no tokenizer to make text with.
        """
        if tokenizer is None:
            raise InvalidInputError(
                f"sampling.stop is {list(stop)}, and the model has no tokenizer.json to decode its responses with; "
                "add it to the model folder, or use sampling.stop_token_ids"
            )
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._special = special_ids(tokenizer)
        self._tokens: list[int] = []  # of the whole response
        self._before = ""  # settled text: as much as the beginning of a stop string
        self._window: list[int] = []  # tokens of settled text, then those beyond it
        self._settled = 0  # of the window: tokens whose text is settled,
        self._characters = 0  # and its length

    def feed(self, token: int) -> bool:
        """Takes the next token of the response. True where its text, this token's included, holds a stop string."""
        if token in self._special or self._tokenizer.id_to_token(token) is None:
            return False
        self._tokens.append(token)
        self._window.append(token)
        decoded = self._decode(self._window)
        text = self._before + decoded[self._characters :]
        # Beyond a window a decoder may see things otherwise: the whole text has the last word.
        if self._in(text) and self._in(self._decode(self._tokens)):
            return True
        if not decoded.endswith(_REPLACEMENT):
            self._settle(text, self._window[self._settled :])
        elif len(self._window) - self._settled > 2 * _UNSETTLED:
            self._settle(text, self._window[-_UNSETTLED:])
        return False

    def _settle(self, text: str, window: list[int]) -> None:
        self._before = text[max(0, len(text) - self._longest + 1) :]
        self._window, self._settled = window, len(window)
        self._characters = len(self._decode(window).rstrip(_REPLACEMENT))

    def _in(self, text: str) -> bool:
        return any(stop in text for stop in self._stop)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
