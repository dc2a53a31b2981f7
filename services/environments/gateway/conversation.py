"""Messages and tools of a request, in the terms of the OpenAI API and in those of chat templates."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from services.environments.gateway.body import Body
from services.environments.gateway.errors import ApiError
from shared import strict_json


class Part(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def plain(content: Any) -> Any:
    """The text of parts, one after the other; templates read texts."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(f"part {i} is of type {str(kind)[:40]!r}; allowed: a text, or parts of type 'text'")
        texts.append(part["text"])
    return "".join(texts)


Content = Annotated[str | None, BeforeValidator(plain)]


class CalledFunction(Body):
    name: str = Field(min_length=1, max_length=256)
    arguments: str  # JSON, as the model wrote it


class Call(Body):
    """A call of a tool that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # the client has it where the call came in a stream


class Message(Body):
    """One message of a conversation; what the client's own answers have as null may stay."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: tuple[Call, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[None, BeforeValidator(lambda value: value or None)] = None

    def for_template(self, place: int) -> dict[str, Any]:
        """As chat templates read it. Raises ApiError, with its place among the messages."""
        where = f"messages[{place}]"
        if self.tool_calls and self.role != "assistant":
            raise ApiError(f"{where}.tool_calls is of role {self.role}; expected assistant", param=where)
        if self.content is None and not self.tool_calls:
            raise ApiError(f'{where}.content is missing; set it, "" where nothing was said', param=f"{where}.content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ApiError(
                f"{where}.tool_call_id is missing; name the call that this answers", param=f"{where}.tool_call_id"
            )
        made: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        for key in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, key)) is not None:
                made[key] = value
        if self.tool_calls:
            made["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call, where, i)},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return made


def _arguments(call: Call, where: str, place: int) -> dict[str, Any]:
    """As an object, which templates write as JSON."""
    try:
        arguments = strict_json.parse(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        field = f"{where}.tool_calls[{place}].function.arguments"
        raise ApiError(f"{field} is {call.function.arguments[:80]!r}; expected an object of JSON", param=field)
    return arguments


class Function(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function
