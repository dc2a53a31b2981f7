"""Forms whose calls stand between two tags, with content around them."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Call, Piece, Reader

IN_STRING = re.compile(r'(?P<quote>")|\\.', re.DOTALL)  # of JSON
_LONGEST_TAG = 32  # characters, more than any of them has


class TaggedReader(Reader):
    """What stands between `begin` and `end` is a call, up to `MOST_CALLS` of them; all else is content.

    An end within a quotation, such as a string of JSON, is text of that, unless the quotation does not end.
    """

    begin: ClassVar[str]
    end: ClassVar[str]
    # What ends the call, or begins a quotation as its group `quote`; and what ends that, or is skipped.
    outside: ClassVar[re.Pattern[str]]
    inside: ClassVar[re.Pattern[str]]
    ignored: ClassVar[tuple[str, ...]] = ()  # tags outside of calls that are no content

    def __init__(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._first, self._tools = first, tools
        self._calls = 0
        self._rest = ""  # what is not told yet; within a call, all that followed its tag
        self._seen = 0  # of that, the characters in which the end was looked for
        self._is_inside = False
        self._is_quoted = False

    def add(self, text: str, *, last: bool = False) -> list[Piece]:
        self._rest += text
        pieces: list[Piece] = []
        while self._read_call(pieces, last) if self._is_inside else self._read_content(pieces, last):
            pass
        return pieces

    @abstractmethod
    def _one(self, inner: str, number: int, is_whole: bool) -> ToolCall:
        """The call between the tags. Args: is_whole: whether the second one was written."""

    def _find_end(self, last: bool) -> tuple[int, bool] | None:
        """How long the call is, and whether its end was written. None: that has to come yet."""
        text = self._rest
        while found := (self.inside if self._is_quoted else self.outside).search(text, self._seen):
            self._seen = found.end()
            if found["quote"]:
                self._is_quoted = not self._is_quoted
            elif not self._is_quoted:
                return found.start(), True
        if not last:  # what may be the beginning of a tag is looked at again
            self._seen = max(self._seen, len(text) - _LONGEST_TAG)
            return None
        first = text.find(self.end)
        if first < 0 or not self._one(text, 0, False).error:
            return len(text), False
        return first, True

    def _read_content(self, pieces: list[Piece], last: bool) -> bool:
        """Whether a call begins."""
        at = self._rest.find(self.begin) if self._calls < MOST_CALLS else -1
        held = 0 if last or at >= 0 else max(overlap(self._rest, tag) for tag in (self.begin, *self.ignored))
        told = at if at >= 0 else len(self._rest) - held
        content = self._rest[:told]
        if self.ignored:
            content = re.sub("|".join(map(re.escape, self.ignored)), "", content)
        if content:
            pieces.append(content)
        if at < 0:
            self._rest = self._rest[told:]
            return False
        self._rest, self._seen = self._rest[at + len(self.begin) :], 0
        self._is_inside, self._is_quoted = True, False
        return True

    def _read_call(self, pieces: list[Piece], last: bool) -> bool:
        """Whether the call has ended."""
        ended = self._find_end(last)
        if ended is None:
            return False
        size, is_whole = ended
        inner = self._rest[:size]
        end = self.end if is_whole else ""
        call = self._one(inner, self._first + self._calls, is_whole)
        pieces.append(Call(call, f"{self.begin}{inner}{end}"))
        self._calls += 1
        self._rest, self._is_inside = self._rest[size + len(end) :], False
        return True


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text the tag may begin with."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)
