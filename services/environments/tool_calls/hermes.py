"""The form of Hermes, Qwen2.5 and Qwen3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Parsed, Parser, call, malformed, reason
from shared import strict_json

_BEGIN, _END = "<tool_call>", "</tool_call>"
_FORM = f'expected {_BEGIN}{{"name": "...", "arguments": {{...}}}}{_END}'


class HermesParser(Parser):
    """Reads JSON between tags."""

    name = "hermes"

    def parse(self, text: str, first: int = 0) -> Parsed:
        content: list[str] = []
        calls: list[ToolCall] = []
        at = 0
        while len(calls) < MOST_CALLS and (begin := text.find(_BEGIN, at)) >= 0:
            content.append(text[at:begin])
            made, at = _one(text, begin + len(_BEGIN), first + len(calls))
            calls.append(made)
        content.append(text[at:])
        return Parsed("".join(content).strip(), tuple(calls))


def _one(text: str, start: int, number: int) -> tuple[ToolCall, int]:
    """The call whose JSON begins there, and the index behind its end."""
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        value, at = strict_json.parse_prefix(text, start)
    except (ValueError, RecursionError) as error:
        end = text.find(_END, start)
        if end < 0:
            return malformed(number, f"the call does not end: {reason(error)}; {_FORM}"), len(text)
        return malformed(number, f"the call is no JSON: {reason(error)}; {_FORM}"), end + len(_END)
    end = text.find(_END, at)
    behind = len(text) if end < 0 else end + len(_END)
    if text[at : end if end >= 0 else None].strip():
        return malformed(number, f"the call has something behind its JSON; {_FORM}"), behind
    if not isinstance(value, dict) or "name" not in value:
        return malformed(number, f"the call has no name; {_FORM}"), behind
    return call(number, value["name"], value.get("arguments", {})), behind
