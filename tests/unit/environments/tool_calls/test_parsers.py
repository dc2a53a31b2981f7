"""Calls of tools in the forms of model families, and whatever else a model may write."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS
from services.environments.tool_calls.registry import AUTO, FORMS, make_parser
from shared.errors import InvalidInputError

NAMES = [name for name in FORMS if name != AUTO]
ADD = {"a": 1, "b": [2.5, None, {"c": '</tool_call> é "quoted" <|call|x'}]}


def hermes(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def deepseek(name: str, arguments: Any) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{written}\n```<｜tool▁call▁end｜>"


def deepseek_31(name: str, arguments: Any) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>"


def harmony(name: str, arguments: Any) -> str:
    header = f"<|start|>assistant<|channel|>commentary to=functions.{name} <|constrain|>json"
    return f"{header}<|message|>{json.dumps(arguments)}<|call|>"


def harmony_recipient_first(name: str, arguments: Any) -> str:
    return f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{json.dumps(arguments)}<|call|>"


WRITERS = [("hermes", hermes), ("deepseek", deepseek), ("deepseek", deepseek_31), ("harmony", harmony),
           ("harmony", harmony_recipient_first)]  # fmt: skip


def calls(form: str, text: str, first: int = 0) -> tuple[ToolCall, ...]:
    parser = make_parser(form, None)
    assert parser is not None
    return parser.parse(text, first).tool_calls


@pytest.mark.parametrize(("form", "write"), WRITERS)
def test_calls_are_read_as_they_were_meant(form: str, write: Any) -> None:
    assert calls(form, write("add", ADD) + write("look_up", {}), 3) == (
        ToolCall("call_3", "add", ADD),
        ToolCall("call_4", "look_up", {}),
    )


@pytest.mark.parametrize(
    ("form", "text", "content", "thoughts"),
    [
        ("hermes", f"<think>hm</think>I look.\n{hermes('f', {})}\n", "<think>hm</think>I look.", ""),
        ("hermes", "It is 42.", "It is 42.", ""),
        ("deepseek", f"I look.<｜tool▁calls▁begin｜>{deepseek('f', {})}<｜tool▁calls▁end｜>", "I look.", ""),
        ("deepseek", "It is 42.", "It is 42.", ""),
        ("harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
         "42", "hm"),
        ("harmony", f"<|channel|>analysis<|message|>hm<|end|>{harmony('f', {})}", "", "hm"),
        ("harmony", "It is 42.", "It is 42.", ""),
    ],
)  # fmt: skip
def test_content_is_what_is_no_call(form: str, text: str, content: str, thoughts: str) -> None:
    parser = make_parser(form, None)
    assert parser is not None
    parsed = parser.parse(text)
    assert (parsed.content, parsed.thoughts) == (content, thoughts)


HOSTILE = [
    ('{"name": "f", "arguments": {"a": NaN}}', "NaN is no JSON"),
    ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "the key 'a' twice"),
    ('{"name": "f", "arguments": {"a": 1e999}}', "a number that is too large"),
    ('{"name": "f", "arguments": {"a": "\\ud800"}}', "half a character"),
    ('{"name": "f", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested too deeply"),
    ('{"name": "f", "arguments": ' + "[" * 100_000, "nested too deeply"),
    ('{"name": "f", "arguments": {"a": ' + "1" * 5000 + "}}", "no JSON"),
    ('{"name": "f", "arguments": [1]}', "a list; expected an object"),
    ('{"name": "f", "arguments": "{\\"a\\": }"}', "are no JSON"),
    ('{"name": "", "arguments": {}}', "no name of 1 to 64"),
    ('{"name": {"a": 1}, "arguments": {}}', "no name of 1 to 64"),
    ('{"name": "' + "f" * 65 + '"}', "no name of 1 to 64"),
    ('{"name": "f\\u0000"}', "no name of 1 to 64"),
    ('{"arguments": {}}', "has no name"),
    ("[]", "has no name"),
    ("", "no JSON"),
    ("{} {}", "something behind its JSON"),
]


@pytest.mark.parametrize(("inner", "error"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_malformed_call_says_what_is_wrong_with_it(inner: str, error: str) -> None:
    (call,) = calls("hermes", f"<tool_call>{inner}</tool_call>")
    assert call.arguments is None
    assert error in call.error
    assert len(call.error) < 500


@pytest.mark.parametrize(("form", "write"), WRITERS)
def test_a_call_that_was_cut_is_none(form: str, write: Any) -> None:
    text = write("add", ADD)
    for end in range(len(text)):
        for call in calls(form, text[:end]):
            assert call.error or call.arguments == ADD


@pytest.mark.parametrize(("form", "write"), WRITERS)
def test_no_more_than_so_many_calls_are_read(form: str, write: Any) -> None:
    assert len(calls(form, write("f", {}) * (MOST_CALLS + 5))) == MOST_CALLS


PIECES = ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "{", "}", '"', "[", "\\", "\n", "```json",
          "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "function",
          "<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|end|>", "assistant", " to=functions.f", "\ud800",
          "commentary", "\x00", "NaN", "1e999"]  # fmt: skip


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=24))
def test_nothing_that_a_model_writes_raises(form: str, pieces: list[str]) -> None:
    parser = make_parser(form, None)
    assert parser is not None
    parsed = parser.parse("".join(pieces), 2)
    assert [call.id for call in parsed.tool_calls] == [f"call_{2 + i}" for i in range(len(parsed.tool_calls))]
    for call in parsed.tool_calls:
        assert (call.arguments is None) == bool(call.error)
        if call.arguments is not None:
            assert call.name
            json.dumps(call.arguments, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("... <tool_call>\n{{ tool_call | tojson }}\n</tool_call>", "hermes"),
        ("<tool_call>\n<function=example>", None),
        ("<tool_call>{name}\n<arg_key>", None),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek"),
        ("<|start|>assistant<|channel|>commentary to=functions.", "harmony"),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_the_template_shows_the_form(template: str | None, form: str | None) -> None:
    parser = make_parser(AUTO, template)
    assert (parser and parser.name) == form


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"tool_calls is 'hermse'; known: auto, .*; did you mean 'hermes'"):
        make_parser("hermse", None)
