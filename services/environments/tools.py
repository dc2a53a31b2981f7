"""Tools: typed Python functions that a model calls, and the environment that calls them for it."""

import asyncio
import inspect
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from routershift.trajectory import Role
from services.environments.base import (
    Action,
    Environment,
    EnvironmentSettings,
    Message,
    MessagesObservation,
    Step,
    ToolCall,
)
from services.environments.playing.failures import EpisodeFailedError
from shared.errors import InvalidInputError
from shared.names import did_you_mean
from shared.user_module import raised

_LONGEST_FAULT = 500  # characters of what a wrong call or an exception says


class Tool:
    """A function that a model may call.

    Its schema comes from its signature, and its description from its docstring, of which a section `Args:` describes
    the parameters. Pydantic checks the arguments.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """
        Args:
            function: plain or async; every parameter has a type and can be given by name. What it returns is text, or
                becomes JSON.

        Raises:
            InvalidInputError: a parameter without a type, or of one that has no JSON schema.
        """
        self.name = function.__name__
        self._function = function
        description, of_parameters = _documented(function)
        where = f"tool {self.name}"
        try:
            hints = get_type_hints(function, include_extras=True)
        except Exception as error:  # whatever evaluating an annotation raises
            raise InvalidInputError(f"{where}: its types cannot be read: {type(error).__name__}: {error}") from None
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise InvalidInputError(f"{where}: parameter {name!r} cannot be given by name; write it plainly")
            if name not in hints:
                raise InvalidInputError(f"{where}: parameter {name!r} has no type; annotate it, as {name}: int")
            default = ... if parameter.default is parameter.empty else parameter.default
            # Any name is a parameter's, also one that a model of pydantic has for itself.
            described = of_parameters.get(name)
            fields[f"p_{name}"] = (hints[name], Field(default, alias=name, description=described))
        try:
            self._arguments: type[BaseModel] = create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
            parameters = self._arguments.model_json_schema()
        except PydanticUserError as error:
            raise InvalidInputError(f"{where}: a parameter has no JSON schema: {str(error).splitlines()[0]}") from None
        parameters.pop("title", None)
        for each in parameters.get("properties", {}).values():
            each.pop("title", None)
        self.schema: Mapping[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "description": description, "parameters": parameters},
        }

    async def call(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """What it returns, as text; or why not, for the model to read.

        A plain function runs in a thread, which nothing can end: where it is late it goes on, and its result is lost.

        Raises:
            EpisodeFailedError: the function does: what failed is no fault of the model's.
        """
        try:
            checked = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            return _short(f"Error: {_faults(error)}")
        values = {name.removeprefix("p_"): getattr(checked, name) for name in type(checked).model_fields}
        try:
            async with asyncio.timeout(seconds) as deadline:
                if inspect.iscoroutinefunction(self._function):
                    returned = await self._function(**values)
                else:
                    returned = await asyncio.to_thread(self._function, **values)
            return _text(returned)
        except TimeoutError as error:
            if deadline.expired():
                return f"Error: {self.name} has not answered within {seconds:g} seconds"
            return f"Error: {raised(error)}"
        except EpisodeFailedError:
            raise
        except (Exception, SystemExit) as error:  # whatever the function raises
            return f"Error: {raised(error)}"


class ToolSettings(EnvironmentSettings):
    """What an environment with tools can be told."""

    tool_seconds: float = Field(
        30.0, gt=0, description="deadline of one call; the model reads that a call took longer. Below turn_seconds"
    )
    output_characters: int = Field(
        8000,
        ge=100,
        description="characters of a tool's output that the model reads; of a longer one the middle is left out",
    )


class ToolEnvironment(Environment):
    """Answers calls of tools with their outputs, and is done when the model makes no call.

    A subclass has `functions`, and `begin` where an episode needs a beginning; `finish` rewards it, or `rewards` is
    False.
    """

    Settings = ToolSettings
    functions: Sequence[Callable[..., Any]] = ()  # or a property, of methods that know the episode

    def __init__(self, settings: EnvironmentSettings) -> None:
        """Raises InvalidInputError: a function is no tool; see `Tool`."""
        super().__init__(settings)
        self._settings = settings if isinstance(settings, ToolSettings) else ToolSettings()
        self._tools = {tool.name: tool for tool in map(Tool, self.functions)}
        self.turns: list[Action] = []

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return [tool.schema for tool in self._tools.values()]

    async def reset(self, task: Mapping[str, Any], seed: int) -> MessagesObservation | None:
        return None

    async def step(self, action: Action) -> Step:
        self.turns.append(action)
        if not action.tool_calls:
            return await self.finish(action)
        outputs = await asyncio.gather(*(self._answer(call) for call in action.tool_calls))
        return Step(MessagesObservation(tuple(Message(Role.TOOL, output) for output in outputs)))

    @abstractmethod
    async def finish(self, action: Action) -> Step:
        """The end of the episode: its reward and parts, or only is_done where a verifier judges it."""

    async def _answer(self, call: ToolCall) -> str:
        if call.arguments is None:
            return f"Error: {call.error}"
        if (tool := self._tools.get(call.name)) is None:
            known = ", ".join(self._tools)
            return f"Error: there is no tool {call.name!r}; the tools are {known}{did_you_mean(call.name, self._tools)}"
        output = await tool.call(call.arguments, self._settings.tool_seconds)
        most = self._settings.output_characters
        if len(output) <= most:
            return output
        half = most // 2
        left_out = f"[{len(output) - 2 * half} of {len(output)} characters are left out here]"
        return f"{output[:half]}\n{left_out}\n{output[-half:]}"  # errors stand at the end


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of each parameter in its section `Args:`."""
    text = inspect.getdoc(function) or ""
    description, _, rest = text.partition("\nArgs:\n")
    parameters: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line[0].isspace():
            break  # another section
        head, colon, said = line.strip().partition(":")
        if colon and head.isidentifier():
            name = head
            parameters[name] = said.strip()
        elif name and line.strip():
            parameters[name] += f" {line.strip()}"
    return description.strip(), parameters


def _faults(error: ValidationError) -> str:
    """What is wrong with arguments, for a model to read."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(map(str, fault["loc"]))
        given = "" if fault["type"] == "missing" else f", not {str(fault['input'])[:80]!r}"
        faults.append(f"{where}: {fault['msg']}{given}")
    return "; ".join(faults)


def _text(value: Any) -> str:
    """Text as it is, nothing as nothing, all else as JSON; characters that Unicode does not have are replaced."""
    if value is None:
        return ""
    if not isinstance(value, str):
        value = json.dumps(TypeAdapter(Any).dump_python(value, mode="json", fallback=str), ensure_ascii=False)
    return str(value).encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:_LONGEST_FAULT]
