"""The form of GLM-4.5 and later: the name of a function, then keys and values between tags.

    <tool_call>NAME
    <arg_key>KEY</arg_key>
    <arg_value>VALUE</arg_value>
    </tool_call>

As its chat template shows it to the model, https://huggingface.co/zai-org/GLM-4.5; GLM-4.6 and 4.7 write it too, the
latter without new lines. Texts are written plainly and other values as JSON: which of the two one is, the schema of the
tool says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.environments.base import ToolCall
from services.environments.tool_calls.base import Parser, Reader, call, malformed
from services.environments.tool_calls.tagged import TaggedReader
from services.environments.tool_calls.typed import schemas_of, typed

_BEGIN, _END, _KEY = "<tool_call>", "</tool_call>", "<arg_key>"
_FORM = f"expected {_BEGIN}NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>{_END}"


class GlmParser(Parser):
    """Reads tags, and types by the schemas of the tools."""

    name = "glm"

    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        return _GlmReader(first, tools)


class _GlmReader(TaggedReader):
    begin, end = _BEGIN, _END
    outside = re.compile(f"(?P<quote><arg_value>)|{_END}")
    inside = re.compile("(?P<quote></arg_value>)")

    def _one(self, inner: str, number: int, is_whole: bool) -> ToolCall:
        if not is_whole:
            return malformed(number, f"the call does not end; {_FORM}")
        head, key_tag, rest = inner.partition(_KEY)
        name, body = head.strip(), key_tag + rest
        schemas = schemas_of(name, self._tools)
        arguments: dict[str, Any] = {}
        at = _skip(body, 0)
        while at < len(body):
            key, at = _element(body, at, "arg_key")
            value, at = _element(body, at, "arg_value")
            if key is None or value is None:
                return malformed(number, f"the call has something between its arguments; {_FORM}")
            name_of = key.strip()
            if name_of in arguments:
                return malformed(number, f"the call has the argument {name_of[:80]!r} twice; {_FORM}")
            arguments[name_of] = typed(value, schemas.get(name_of))
        return call(number, name, arguments)


def _element(text: str, at: int, tag: str) -> tuple[str | None, int]:
    """What stands between the tags that begin there, and the index of what follows; None where none do."""
    begin, end = f"<{tag}>", f"</{tag}>"
    stop = text.find(end, at) if text.startswith(begin, at) else -1
    return (None, at) if stop < 0 else (text[at + len(begin) : stop], _skip(text, stop + len(end)))


def _skip(text: str, at: int) -> int:
    """The index of the next character that is no white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at
