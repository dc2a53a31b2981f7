"""The forms of DeepSeek-V3 and V3.1: tags of their own around the name and JSON arguments.

V3 and R1 write `function<｜tool▁sep｜>NAME`, a new line and the arguments in a fence of json; V3.1 writes
`NAME<｜tool▁sep｜>` and the arguments.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.environments.base import ToolCall
from services.environments.tool_calls.base import Parser, Reader, call, malformed
from services.environments.tool_calls.tagged import IN_STRING, TaggedReader

_ALL_BEGIN, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_FORM = f"expected {_BEGIN}NAME{_SEPARATOR}{{...}}{_END}"


class DeepSeekParser(Parser):
    """Reads both forms; which one it is, each call says."""

    name = "deepseek"

    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        return _DeepSeekReader(first)


class _DeepSeekReader(TaggedReader):
    begin, end = _BEGIN, _END
    ignored = (_ALL_BEGIN, _ALL_END)
    outside, inside = re.compile(f'(?P<quote>")|{_END}'), IN_STRING

    def _one(self, inner: str, number: int, is_whole: bool) -> ToolCall:
        if not is_whole:
            return malformed(number, f"the call does not end; {_FORM}")
        return _one(inner, number)


def _one(inner: str, number: int) -> ToolCall:
    head, separator, body = inner.partition(_SEPARATOR)
    if not separator:
        return malformed(number, f"the call has no {_SEPARATOR}; {_FORM}")
    name = head.strip()
    if name == "function":  # V3: the type stands first
        first_line, _, rest = body.partition("\n")
        name, body = first_line.strip(), rest
    if fenced := _FENCED.fullmatch(body):
        body = fenced[1]
    return call(number, name, body.strip() or "{}")
