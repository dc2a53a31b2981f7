"""The form of Qwen3-Coder: a function and its parameters between tags of their own.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

As its chat template shows it to the model, https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct; Qwen3.5 and
Qwen3-Next-Coder write it too. Values are plain text: which type one has, the schema of the tool says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.environments.base import ToolCall
from services.environments.tool_calls.base import Parser, Reader, call, malformed
from services.environments.tool_calls.tagged import TaggedReader
from services.environments.tool_calls.typed import schemas_of, typed

_BEGIN, _END = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]*)>(.*)</function>\s*", re.DOTALL)
# The end of a parameter may be missing where the next one begins.
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]*)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_FORM = f"expected {_BEGIN}<function=NAME><parameter=KEY>VALUE</parameter></function>{_END}"


class Qwen3CoderParser(Parser):
    """Reads tags, and types by the schemas of the tools."""

    name = "qwen3_coder"

    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        return _Qwen3CoderReader(first, tools)


class _Qwen3CoderReader(TaggedReader):
    begin, end = _BEGIN, _END
    outside = re.compile(f"(?P<quote><parameter=)|{_END}")
    inside = re.compile("(?P<quote></parameter>|</function>)")

    def _one(self, inner: str, number: int, is_whole: bool) -> ToolCall:
        if not (function := _FUNCTION.fullmatch(inner)):
            what = "has no function" if is_whole else "does not end"
            return malformed(number, f"the call {what}; {_FORM}")
        name, body = function[1].strip(), function[2]
        schemas = schemas_of(name, self._tools)
        arguments: dict[str, Any] = {}
        at = 0
        while found := _PARAMETER.match(body, at):
            key, value = found[1].strip(), found[2].removeprefix("\n").removesuffix("\n")
            if key in arguments:
                return malformed(number, f"the call has the parameter {key[:80]!r} twice; {_FORM}")
            arguments[key] = typed(value, schemas.get(key))
            at = found.end()
        if body[at:].strip():
            return malformed(number, f"the call has something between its parameters; {_FORM}")
        return call(number, name, arguments)
