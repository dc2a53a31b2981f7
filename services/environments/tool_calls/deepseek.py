"""The forms of DeepSeek-V3 and V3.1: tags of their own around the name and JSON arguments.

V3 and R1 write `function<｜tool▁sep｜>NAME`, a new line and the arguments in a fence of json; V3.1 writes
`NAME<｜tool▁sep｜>` and the arguments.
"""

import re

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Parsed, Parser, call, malformed

_ALL_BEGIN, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_FORM = f"expected {_BEGIN}NAME{_SEPARATOR}{{...}}{_END}"


class DeepSeekParser(Parser):
    """Reads both forms; which one it is, each call says."""

    name = "deepseek"

    def parse(self, text: str, first: int = 0) -> Parsed:
        calls: list[ToolCall] = []
        at = text.find(_BEGIN)
        content = text if at < 0 else text[:at]
        content = content.replace(_ALL_BEGIN, "").replace(_ALL_END, "").strip()
        while at >= 0 and len(calls) < MOST_CALLS:
            start = at + len(_BEGIN)
            end = text.find(_END, start)
            number = first + len(calls)
            if end < 0:
                calls.append(malformed(number, f"the call does not end; {_FORM}"))
                break
            calls.append(_one(text[start:end], number))
            at = text.find(_BEGIN, end)
        return Parsed(content, tuple(calls))


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
