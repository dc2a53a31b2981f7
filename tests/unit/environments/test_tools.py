"""Tools: functions with types become schemas; what a model gets wrong is a message that it can read."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from routershift.trajectory import FinishReason, Role
from services.environments.base import Action, MessagesObservation, Step, ToolCall
from services.environments.playing.failures import EpisodeFailedError
from services.environments.tools import Tool, ToolEnvironment, ToolSettings
from shared.errors import InvalidInputError


class Place(BaseModel):
    x: int
    y: int = 0


def look(place: Place, what: Literal["door", "key"], times: int = 1, model_config: list[str] | None = None) -> Any:
    """Looks somewhere.

    And more of it.

    Args:
        place: where to look,
            from the west
        what: the thing
    """
    return {"at": place.x, "what": what, "times": times, "more": model_config}


def run(tool: Tool, arguments: dict[str, Any], seconds: float = 30.0) -> str:
    return asyncio.run(tool.call(arguments, seconds))


def test_the_schema_comes_from_signature_and_docstring() -> None:
    function = Tool(look).schema["function"]
    assert Tool(look).schema["type"] == "function"
    assert (function["name"], function["description"]) == ("look", "Looks somewhere.\n\nAnd more of it.")
    parameters = function["parameters"]
    assert parameters["required"] == ["place", "what"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["what"] == {"description": "the thing", "enum": ["door", "key"], "type": "string"}
    assert parameters["properties"]["times"] == {"default": 1, "type": "integer"}
    assert parameters["properties"]["place"]["description"] == "where to look, from the west"
    assert set(parameters["$defs"]["Place"]["properties"]) == {"x", "y"}


def test_arguments_are_checked_and_given_by_name() -> None:
    tool = Tool(look)
    assert run(tool, {"place": {"x": 1}, "what": "key", "model_config": ["a"]}) == (
        '{"at": 1, "what": "key", "times": 1, "more": ["a"]}'
    )
    wrong = run(tool, {"place": {"x": "far"}, "what": "wall", "time": 2})
    assert wrong.startswith("Error: place.x: Input should be a valid integer")
    assert "what: Input should be 'door' or 'key', not 'wall'" in wrong
    assert "time: Extra inputs are not permitted" in wrong
    assert run(tool, {}) == "Error: place: Field required; what: Field required"


async def late() -> None:
    await asyncio.Event().wait()


def late_and_blocking() -> None:
    time.sleep(3)


def raises() -> None:
    raise KeyError("no\ud800 such " + "x" * 5000)


def times_out() -> None:
    raise TimeoutError("its own")


def ends() -> None:
    raise SystemExit(2)


def half() -> str:
    return "a\ud800b"


def nothing() -> None:
    return None


def an_object() -> Any:
    return object()


@pytest.mark.parametrize(
    ("function", "beginning"),
    [
        (late, "Error: late has not answered within 0.2 seconds"),
        (late_and_blocking, "Error: late_and_blocking has not answered within 0.2 seconds"),
        (raises, "Error: KeyError: 'no"),
        (times_out, "Error: TimeoutError: its own"),
        (ends, "Error: SystemExit: 2"),
        (half, "a?b"),
        (nothing, ""),
        (an_object, '"<object object at'),
    ],
)
def test_whatever_a_tool_does_is_a_text(function: Callable[..., Any], beginning: str) -> None:
    text = run(Tool(function), {}, 0.2 if function in (late, late_and_blocking) else 30.0)
    assert text.startswith(beginning)
    assert len(text) <= 520
    text.encode()


def test_a_fault_that_is_not_the_models_goes_through() -> None:
    def broken() -> None:
        raise EpisodeFailedError("the machine is broken")

    with pytest.raises(EpisodeFailedError, match="the machine is broken"):
        run(Tool(broken), {})


def untyped(a) -> None:  # type: ignore[no-untyped-def]
    pass


def by_place(a: int, /) -> None:
    pass


def any_number(*many: int) -> None:
    pass


def no_schema(a: Callable[[], None]) -> None:
    pass


def unknown_type(a: "Unknown") -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, r"tool untyped: parameter 'a' has no type; annotate it, as a: int"),
        (by_place, r"tool by_place: parameter 'a' cannot be given by name"),
        (any_number, r"tool any_number: parameter 'many' cannot be given by name"),
        (no_schema, r"tool no_schema: a parameter has no JSON schema"),
        (unknown_type, r"tool unknown_type: its types cannot be read: NameError"),
    ],
)
def test_what_is_no_tool_is_said_when_it_is_made(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Tool(function)


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def long() -> str:
    """Says much."""
    return "a" * 500 + "b" * 500


class Adds(ToolEnvironment):
    name = "adds"
    version = "1"
    description = "adds"
    functions = (add, long)

    async def finish(self, action: Action) -> Step:
        return Step(reward=float(len(self.turns)), is_done=True)


def step(environment: ToolEnvironment, *calls: ToolCall) -> Step:
    return asyncio.run(environment.step(Action("text", FinishReason.STOP, calls)))


def outputs(step: Step) -> list[str]:
    assert isinstance(step.observation, MessagesObservation)
    assert all(message.role is Role.TOOL for message in step.observation.messages)
    return [message.content for message in step.observation.messages]


def test_each_call_has_an_answer_and_a_turn_without_one_is_the_last() -> None:
    environment = Adds(ToolSettings(output_characters=100))
    assert [tool["function"]["name"] for tool in environment.tools] == ["add", "long"]
    answered = step(
        environment,
        ToolCall("call_0", "add", {"a": 2, "b": 3}),
        ToolCall("call_1", "ad", {}),
        ToolCall("call_2", "", None, "the call is no JSON"),
        ToolCall("call_3", "long", {}),
        ToolCall("call_4", "add", {"a": 2}),
    )
    assert not answered.is_done
    assert outputs(answered) == [
        "5",
        "Error: there is no tool 'ad'; the tools are add, long; did you mean 'add'?",
        "Error: the call is no JSON",
        "a" * 50 + "\n[900 of 1000 characters are left out here]\n" + "b" * 50,
        "Error: b: Field required",
    ]
    assert step(environment) == Step(reward=2.0, is_done=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "b", "place", "what", "times", "self", "p_a"]) | st.text(max_size=5)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([Tool(add), Tool(look), Tool(long)]), st.dictionaries(NAMES, JSON, max_size=4))
def test_no_arguments_make_a_tool_raise(tool: Tool, arguments: dict[str, Any]) -> None:
    run(tool, arguments).encode()
