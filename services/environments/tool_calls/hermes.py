"""The form of Hermes, Qwen2.5 and Qwen3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.environments.base import ToolCall
from services.environments.tool_calls.base import Parser, Reader, call, malformed, reason
from services.environments.tool_calls.tagged import IN_STRING, TaggedReader
from shared import strict_json

_BEGIN, _END = "<tool_call>", "</tool_call>"
_FORM = f'expected {_BEGIN}{{"name": "...", "arguments": {{...}}}}{_END}'


class HermesParser(Parser):
    """Reads JSON between tags."""

    name = "hermes"

    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        return _HermesReader(first)


class _HermesReader(TaggedReader):
    begin, end = _BEGIN, _END
    outside, inside = re.compile(f'(?P<quote>")|{_END}'), IN_STRING

    def _one(self, inner: str, number: int, is_whole: bool) -> ToolCall:
        return _one(inner, number, is_whole)


def _one(inner: str, number: int, is_whole: bool) -> ToolCall:
    text = inner.strip()
    try:
        value, at = strict_json.parse_prefix(text)
    except (ValueError, RecursionError) as error:
        what = "is no JSON" if is_whole else "does not end"
        return malformed(number, f"the call {what}: {reason(error)}; {_FORM}")
    if text[at:]:
        return malformed(number, f"the call has something behind its JSON; {_FORM}")
    if not isinstance(value, dict) or "name" not in value:
        return malformed(number, f"the call has no name; {_FORM}")
    return call(number, value["name"], value.get("arguments", {}))
