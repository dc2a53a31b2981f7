"""Harmony, the form of GPT-OSS: messages in channels; one to functions.NAME is a call.

https://cookbook.openai.com/articles/openai-harmony. A turn is several messages, of which the chat template has written
the beginning of the first, `<|start|>assistant`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Call, Parser, Piece, Reader, Thought, call, malformed
from services.environments.tool_calls.tagged import overlap

_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_AFTER_HEADER, _AFTER_BODY, _AFTER_MESSAGE = (
    re.compile("|".join(map(re.escape, tags))) for tags in ((_START, _MESSAGE), (*_ENDS, _START), (_START,))
)
_LONGEST = max(map(len, (*_ENDS, _START, _MESSAGE)))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,20})")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_NAMESPACE = "functions."


class HarmonyParser(Parser):
    """Reads the channels: final and commentary are content, analysis is thoughts."""

    name = "harmony"
    needs_special_tokens = True

    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        return _HarmonyReader(first)


class _HarmonyReader(Reader):
    """Goes from header to body to what stands between messages, and begins again."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._calls = 0
        self._text = ""
        self._at = 0  # what is before that is told
        self._seen = 0  # the characters in which a tag was looked for
        self._read = self._read_header
        self._header = ""
        self._recipient = ""
        self._is_thought = False
        self._contents = _Contents()
        self._thoughts = 0

    def add(self, text: str, *, last: bool = False) -> list[Piece]:
        self._text = self._text[self._at :] + text
        self._seen, self._at = max(0, self._seen - self._at), 0
        pieces: list[Piece] = []
        while self._read(pieces, last):
            pass
        return pieces

    def _read_header(self, pieces: list[Piece], last: bool) -> bool:
        tag, header = self._until(_AFTER_HEADER, last)
        if header is None:
            return False
        recipient = _RECIPIENT.search(header)
        if tag != _MESSAGE:
            if recipient:
                self._say_call(pieces, header, "", malformed(self._number, f"the call has no {_MESSAGE}"))
            elif not _CHANNEL.search(header):  # another form, or none
                self._contents.begin()
                pieces += self._contents.add(_without_ends(header))
            return bool(tag)
        self._header = header
        self._recipient = recipient[1].removeprefix(_NAMESPACE) if recipient else ""
        channel = found[1] if (found := _CHANNEL.search(header)) else ""
        self._is_thought = channel == "analysis"
        if recipient:
            self._read = self._read_call
        else:
            self._read = self._read_body
            if self._is_thought:
                self._thoughts += 1
                pieces += [Thought("\n")] * (self._thoughts > 1)
            else:
                self._contents.begin()
        return True

    def _read_call(self, pieces: list[Piece], last: bool) -> bool:
        tag, body = self._until(_AFTER_BODY, last)
        if body is None:
            return False
        is_whole = tag in _ENDS
        made = call(self._number, self._recipient, body.strip() or "{}" * is_whole)
        self._say_call(pieces, f"{self._header}{_MESSAGE}", body + tag * is_whole, made)
        return self._ended(tag)

    def _read_body(self, pieces: list[Piece], last: bool) -> bool:
        tag, body = self._until(_AFTER_BODY, last)
        if body is None:
            body = self._taken((*_ENDS, _START))
        if self._is_thought:
            pieces += [Thought(body)] * bool(body)
        else:
            pieces += self._contents.add(body)
        return self._ended(tag) if tag else False

    def _read_between(self, pieces: list[Piece], last: bool) -> bool:
        tag, _ = self._until(_AFTER_MESSAGE, last)
        if not tag:
            self._taken((_START,))
            return False
        self._read = self._read_header
        return True

    def _ended(self, tag: str) -> bool:
        """What follows a message; whether there is more."""
        self._read = self._read_header if tag == _START else self._read_between
        return bool(tag)

    def _until(self, tags: re.Pattern[str], last: bool) -> tuple[str, str | None]:
        """The first of the tags and what stands before it; both are taken.

        Without one of them, "" and all of it at the end of the turn; before that, "" and None.
        """
        found = tags.search(self._text, max(self._at, self._seen))
        if found is None and not last:
            self._seen = max(self._at, len(self._text) - _LONGEST + 1)
            return "", None
        end = found.start() if found else len(self._text)
        before = self._text[self._at : end]
        self._at = found.end() if found else end
        return found[0] if found else "", before

    def _taken(self, tags: Sequence[str]) -> str:
        """All that is no beginning of a tag, which is taken."""
        end = max(self._at, len(self._text) - max(overlap(self._text, tag) for tag in tags))
        before, self._at = self._text[self._at : end], end
        return before

    @property
    def _number(self) -> int:
        return self._first + self._calls

    def _say_call(self, pieces: list[Piece], header: str, body: str, made: ToolCall) -> None:
        if self._calls < MOST_CALLS:
            pieces.append(Call(made, header + body))
            self._calls += 1


class _Contents:
    """Bodies that are content, one a line; those that are blank are left out."""

    def __init__(self) -> None:
        self._lines = 0
        self._blank = ""  # of a body that has been blank so far
        self._is_blank = True

    def begin(self) -> None:
        """Another body."""
        self._blank, self._is_blank = "", True

    def add(self, text: str) -> list[Piece]:
        if not self._is_blank:
            return [text] * bool(text)
        self._blank += text
        if not self._blank.strip():
            return []
        told = "\n" * (self._lines > 0) + self._blank
        self._lines, self._blank, self._is_blank = self._lines + 1, "", False
        return [told]


def _without_ends(text: str) -> str:
    for tag in _ENDS:
        text = text.replace(tag, "")
    return text
