"""Fenced code blocks of a response, in time linear in its length.

A parser of CommonMark is stricter than the writers we read: it ends a fence in a list where a line is indented less
than the list, and takes a fence after `<answer>` for HTML. So the rules of fences (CommonMark 0.31, section 4.5) are
kept here, and what is around them decides less.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from services.reward.verifiers.tags import THOUGHTS

_LINE_ENDS = re.compile(r"\r\n|\n|\r")
_TAB_STOP = 4
# What may stand before a fence: indentation, and the markers of quotes and lists.
_OPENING = re.compile(r"((?:[ \t]|>|[-*+](?=[ \t])|\d{1,9}[.)](?=[ \t]))*)(`{3,}|~{3,})(.*)", re.DOTALL)
_MAX_NESTING = 16  # quotes in quotes
_CLOSING_INDENTATION = 3  # columns that a closing fence may be indented more than its opening
_QUOTE = re.compile(r" {0,3}> ?")
# An end of thoughts at the start of a line, perhaps after the end of a fence: a draft before it was left open.
_END_OF_THOUGHTS = re.compile(rf"[`~ \t]*(?:{'|'.join(re.escape(closing) for _, closing in THOUGHTS)})")
# What tags begin with, and stands for it where it is the text of a program: code points that are no characters.
_TAG_STARTS = {ord(opening[0]): 0xFDD0 + i for i, (opening, _) in enumerate(THOUGHTS)}
_TEXT_STARTS = {stand_in: start for start, stand_in in _TAG_STARTS.items()}


class Block(NamedTuple):
    """A fenced block. `language` is the first word of its info string, in lower case; it may be empty."""

    language: str
    text: str


class _Line(NamedTuple):
    raw: str
    opening: "_Fence | None"  # the fence that this line opens
    closes: bool
    inside: bool  # it is content of a block
    content: str  # as content, without what the block is indented by


@dataclass(frozen=True)
class _Fence:
    marks: str
    column: int
    quotes: int
    language: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a text; one that does not end goes to the end of the text."""
    found: list[Block] = []
    lines: list[str] = []
    language: str | None = None
    for line in _scan(text):
        if line.inside and language is not None:
            lines.append(line.content)
            continue
        if language is not None:
            found.append(Block(language, _joined(lines)))
            language = None
        if line.opening:
            language, lines = line.opening.language, []
    if language is not None:
        found.append(Block(language, "\n".join(lines)))
    return found


def hidden(text: str) -> str:
    """The text, with other starts of the tags in its fenced blocks: there they are text. `shown` takes it back."""
    return "\n".join(
        line.raw.translate(_TAG_STARTS) if line.inside and not _END_OF_THOUGHTS.match(line.raw) else line.raw
        for line in _scan(text)
    )


def shown(text: str) -> str:
    return text.translate(_TEXT_STARTS)


def _scan(text: str) -> Iterator[_Line]:
    fence: _Fence | None = None
    for raw in _LINE_ENDS.split(text):
        if fence is None:
            fence = _opening(raw)
            yield _Line(raw, fence, False, False, "")
            continue
        line, quoted = _unquoted(raw, fence.quotes)
        if not quoted:  # the quote that the block is in has ended
            fence = _opening(raw)
            yield _Line(raw, fence, True, False, "")
        elif _closes(line, fence):
            fence = None
            yield _Line(raw, None, True, False, "")
        else:
            left_open = _END_OF_THOUGHTS.match(raw) is not None
            yield _Line(raw, None, False, True, _dedented(line, fence.column))
            fence = None if left_open else fence


def _opening(line: str) -> _Fence | None:
    found = _OPENING.match(line)
    if not found:
        return None
    prefix, marks, info = found.groups()
    if marks[0] == "`" and "`" in info:  # code within a line
        return None
    words = info.split(maxsplit=1)
    language = words[0].lower().strip("{.}") if words else ""
    quotes = min(prefix.count(">"), _MAX_NESTING)
    column = _columns(prefix.rpartition("> ")[2] if quotes else prefix)
    return _Fence(marks, column, quotes, language)


def _closes(line: str, fence: _Fence) -> bool:
    marks = line.strip(" \t")
    indentation = _columns(line[: len(line) - len(line.lstrip(" \t"))])
    return (
        len(marks) >= len(fence.marks)
        and marks == fence.marks[0] * len(marks)
        and indentation <= fence.column + _CLOSING_INDENTATION
    )


def _unquoted(line: str, quotes: int) -> tuple[str, bool]:
    for _ in range(quotes):
        mark = _QUOTE.match(line)
        if not mark:
            return line, False
        line = line[mark.end() :]
    return line, True


def _dedented(line: str, columns: int) -> str:
    """Without up to so many columns of indentation."""
    column = 0
    for place, character in enumerate(line):
        if column >= columns or character not in " \t":
            return " " * (column - columns) + line[place:]
        column += _TAB_STOP - column % _TAB_STOP if character == "\t" else 1
    return ""


def _columns(prefix: str) -> int:
    return len(prefix.expandtabs(_TAB_STOP))


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
