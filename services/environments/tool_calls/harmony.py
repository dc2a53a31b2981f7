"""Harmony, the form of GPT-OSS: messages in channels; one to functions.NAME is a call.

https://cookbook.openai.com/articles/openai-harmony. A turn is several messages, of which the chat template has written
the beginning of the first, `<|start|>assistant`.
"""

import re

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Parsed, Parser, call, malformed

_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = re.compile(r"<\|(?:end|call|return)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,20})")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_NAMESPACE = "functions."


class HarmonyParser(Parser):
    """Reads the channels: final and commentary are content, analysis is thoughts."""

    name = "harmony"
    needs_special_tokens = True

    def parse(self, text: str, first: int = 0) -> Parsed:
        content: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        for message in text.split(_START):
            header, written, rest = message.partition(_MESSAGE)
            end = _ENDS.search(rest)
            body = rest[: end.start()] if end else rest
            channel = found[1] if (found := _CHANNEL.search(header)) else ""
            if not written:
                if not channel and not _RECIPIENT.search(header):
                    content.append(_ENDS.sub("", header))  # another form, or none
                elif _RECIPIENT.search(header) and len(calls) < MOST_CALLS:
                    calls.append(malformed(first + len(calls), f"the call has no {_MESSAGE}"))
            elif recipient := _RECIPIENT.search(header):
                if len(calls) < MOST_CALLS:
                    name = recipient[1].removeprefix(_NAMESPACE)
                    calls.append(call(first + len(calls), name, body.strip() or "{}" * bool(end)))
            elif channel == "analysis":
                thoughts.append(body)
            else:
                content.append(body)
        return Parsed("\n".join(part for part in content if part.strip()), tuple(calls), "\n".join(thoughts))
