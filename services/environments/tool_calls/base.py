"""What a parser of tool calls is."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from services.environments.base import ToolCall
from shared import strict_json

MOST_CALLS = 64  # of one turn; those after them are not read
_LONGEST_NAME = 64
_DEEPEST = 32  # objects and lists within each other, of arguments


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a turn of the model says."""

    content: str  # without the calls
    tool_calls: tuple[ToolCall, ...] = ()
    thoughts: str = ""  # where the form keeps them apart; else they are in the content


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of a channel for thoughts."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is whole, or what was begun as one."""

    call: ToolCall
    written: str  # as the model wrote it


Piece = str | Thought | Call


class Reader(ABC):
    """Reads one turn of the model as it comes. However that is cut, the pieces add up to the same."""

    @abstractmethod
    def add(self, text: str, *, last: bool = False) -> list[Piece]:
        """What is known with this text: content as soon as it is no beginning of a tag, and calls when they are whole.

        Args:
            last: whether the turn ends with it. Then nothing is held back.
        """


class Parser(ABC):
    """Reads one form. Stateless; never raises, whatever the model writes."""

    name: ClassVar[str]
    needs_special_tokens: ClassVar[bool] = False  # whether the form is written in them

    @abstractmethod
    def reader(self, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Reader:
        """What reads one turn.

        Args:
            first: number of the first call: ids are call_<number>, unique in an episode where it counts on.
            tools: the functions that there are, as chat templates read them: forms that write values without types take
                them from there.
        """

    def parse(self, text: str, first: int = 0, tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
        """A whole turn. A call that is malformed is one with an `error`, for the model to read.

        Args:
            text: what the model wrote, with special tokens where `needs_special_tokens`.
            first, tools: as `reader`.
        """
        pieces = self.reader(first, tools).add(text, last=True)
        content = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
        thoughts = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
        return Parsed(content, tuple(piece.call for piece in pieces if isinstance(piece, Call)), thoughts)


def call(number: int, name: object, arguments: object) -> ToolCall:
    """A call of a name and arguments that were read, as JSON or as what it stands for."""
    identity = f"call_{number}"
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        return ToolCall(identity, "", None, f"the call has no name of 1 to {_LONGEST_NAME} characters")
    if isinstance(arguments, str):
        try:
            arguments = strict_json.parse(arguments)
        except (ValueError, RecursionError) as error:
            return ToolCall(identity, name, None, f"the arguments of {name} are no JSON: {reason(error)}")
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        return ToolCall(identity, name, None, f"the arguments of {name} are a {kind}; expected an object")
    if fault := _unusable(arguments):
        return ToolCall(identity, name, None, f"the arguments of {name} {fault}")
    return ToolCall(identity, name, arguments)


def malformed(number: int, why: str) -> ToolCall:
    """What was begun as a call and is none."""
    return ToolCall(f"call_{number}", "", None, why)


def reason(error: Exception) -> str:
    """Why it is no JSON, in a line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(error).split())[:200]


def _unusable(arguments: dict[str, Any]) -> str:
    """Why arguments cannot be handed on; "" where they can."""
    if _depth(arguments) > _DEEPEST:
        return f"are nested too deeply; expected at most {_DEEPEST} levels"
    try:
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "have half a character; expected Unicode"
    except ValueError:
        return "have a number that is too large"
    return ""


def _depth(value: Any) -> int:
    """Levels of objects and lists, counted as far as one too many."""
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        below = [inner for each in level if isinstance(each, dict) for inner in each.values()]
        below += [inner for each in level if isinstance(each, list) for inner in each]
        depth += any(isinstance(each, dict | list) for each in level)
        level = [each for each in below if isinstance(each, dict | list)]
    return depth
