"""The assistant's message: what the model says, told as it comes or whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.environments.gateway import answers
from services.environments.tool_calls.base import Reader, Thought


@dataclass(slots=True)
class Delta:
    """What is new of a message."""

    content: str = ""
    thoughts: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)


class Reply:
    """One message. However the text is cut into pieces, the deltas add up to the same.

    A call is told when it is whole. One that is malformed is content, as it was written: this API has no such call.
    Where there are calls, the content does not end with white space, nor begin with what stands around the first one.
    """

    def __init__(self, reader: Reader | None, calls_tools: bool, stops: Sequence[str]) -> None:
        """Args: reader: None where all text is content; calls_tools: False where calls are content too."""
        self._reader, self._calls_tools = reader, calls_tools
        self._stops = answers.Stops(stops)
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._space = ""  # white space that is content if something follows
        self._has_content = False

    def add(self, text: str, *, last: bool = False) -> Delta:
        """Args: text: with special tokens where the form is written in them; last: whether that is all."""
        delta = Delta()
        if self._reader is None:
            delta.content = self._stops.add(text, last=last)
        else:
            content = []
            for piece in self._reader.add(text, last=last):
                if isinstance(piece, Thought):
                    delta.thoughts += piece.text
                elif isinstance(piece, str):
                    content.append(self._told(self._stops.add(piece)))
                elif self._calls_tools and not piece.call.error:
                    delta.calls += answers.calls_of([piece.call])
                    self._calls += delta.calls[-1:]
                else:
                    content.append(self._told(self._stops.add(piece.written)))
            if last:
                content.append(self._told(self._stops.add("", last=True)))
                content.append("" if self._calls else self._space)
            delta.content = "".join(content)
        self._content.append(delta.content)
        self._thoughts.append(delta.thoughts)
        return delta

    @property
    def calls(self) -> int:
        """How many there are so far."""
        return len(self._calls)

    @property
    def message(self) -> dict[str, Any]:
        """All of it."""
        content, thoughts = "".join(self._content), "".join(self._thoughts)
        message: dict[str, Any] = {"role": "assistant", "refusal": None, "content": content}
        if self._calls:
            message |= {"content": content or None, "tool_calls": self._calls}
        return message | ({"reasoning_content": thoughts} if thoughts else {})

    def _told(self, content: str) -> str:
        """What of the content can be told: white space at the end is held until something follows."""
        said = content.rstrip()
        if not said:
            self._space += content
            return ""
        told = self._space + said
        if self._calls and not self._has_content:
            told = told.lstrip()
        self._space, self._has_content = content[len(said) :], True
        return told
