"""Calls of tools in the forms of model families, and whatever else a model may write.

Long because every form of calls has examples of its own.
"""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.environments.base import ToolCall
from services.environments.tool_calls.base import MOST_CALLS, Call, Piece, Thought
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


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def qwen3_coder(name: str, arguments: Any) -> str:
    parameters = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def glm(name: str, arguments: Any) -> str:
    pairs = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n" for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{pairs}</tool_call>"


def glm_47(name: str, arguments: Any) -> str:
    return glm(name, arguments).replace("\n", "")


WRITERS = [("hermes", hermes), ("deepseek", deepseek), ("deepseek", deepseek_31), ("harmony", harmony),
           ("harmony", harmony_recipient_first), ("qwen3_coder", qwen3_coder), ("glm", glm),
           ("glm", glm_47)]  # fmt: skip
SCHEMA = {"properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]


def calls(form: str, text: str, first: int = 0) -> tuple[ToolCall, ...]:
    parser = make_parser(form, None)
    assert parser is not None
    return parser.parse(text, first, TOOLS).tool_calls


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
          "commentary", "\x00", "NaN", "1e999", "<function=add>", "</function>", "<parameter=a>", "</parameter>",
          "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<|channel|>final", "<|channel|>analysis", "5",
          " ", "<tool_call>\n", '<tool_call>{"name": "f", "arguments": {"a": "']  # fmt: skip


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=24))
def test_nothing_that_a_model_writes_raises(form: str, pieces: list[str]) -> None:
    parser = make_parser(form, None)
    assert parser is not None
    parsed = parser.parse("".join(pieces), 2, TOOLS)
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
        ("<tool_call>\n<function=example>", "qwen3_coder"),
        ("<tool_call>{name}\n<arg_key>", "glm"),
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


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    made: list[Piece] = []
    for piece in pieces:
        last = made[-1] if made else None
        if isinstance(piece, str) and isinstance(last, str):
            made[-1] = last + piece
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            made[-1] = Thought(last.text + piece.text)
        else:
            made.append(piece)
    return made


@st.composite
def turns_in_pieces(draw: st.DrawFn, form: str) -> list[str]:
    """What a model writes, calls of the form among it, cut anywhere."""
    writers = [write for name, write in WRITERS if name == form]
    arguments = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers() | st.text(max_size=6), max_size=2)
    call = st.builds(lambda write, given: str(write("add", given)), st.sampled_from(writers), arguments)
    parts = draw(st.lists(call | st.sampled_from(PIECES) | st.text(max_size=8), max_size=10))
    text = "".join(parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_however_a_turn_is_cut_it_says_the_same(form: str, data: st.DataObject) -> None:
    pieces = data.draw(turns_in_pieces(form))
    parser = make_parser(form, None)
    assert parser is not None
    reader = parser.reader(2, TOOLS)
    come = [made for piece in pieces for made in reader.add(piece)] + reader.add("", last=True)
    assert merged(come) == merged(parser.reader(2, TOOLS).add("".join(pieces), last=True))


@pytest.mark.parametrize(("form", "write"), WRITERS)
def test_a_call_is_told_as_soon_as_it_is_whole_and_content_before_it(form: str, write: Any) -> None:
    parser = make_parser(form, None)
    assert parser is not None
    reader = parser.reader(0, TOOLS)
    before = "<|channel|>commentary<|message|>I look.<|end|>" if form == "harmony" else "I look. "
    told = [piece for character in before for piece in reader.add(character)]
    assert "".join(piece for piece in told if isinstance(piece, str)).strip() == "I look."
    assert not any(isinstance(piece, Call) for piece in told)
    whole = [piece for character in write("add", ADD) for piece in reader.add(character) if isinstance(piece, Call)]
    assert [piece.call for piece in whole] == [ToolCall("call_0", "add", ADD)], "without the end of the turn"


LONG = 400_000


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("unit", ["<tool_call>", "</tool_call>", '<tool_call>{"', "<arg_key></arg_key><arg_value>",
                                  "<tool_call><function=f><parameter=a>", "</function> ", "<|start|>", "<|message|>",
                                  "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
                                  "<｜tool▁calls▁begin｜>", "\\", " "])  # fmt: skip
def test_what_repeats_itself_is_read_in_a_time_that_grows_with_its_length(form: str, unit: str) -> None:
    """Would not end within the test's deadline, were tags looked for again and again."""
    parser = make_parser(form, None)
    assert parser is not None
    opened = {"glm": "<tool_call>f", "qwen3_coder": "<tool_call><function=f>", "hermes": '<tool_call>{"a": "'}
    parser.parse(opened.get(form, "") + unit * (LONG // len(unit)))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "5.5", "5.5"),
        ({"type": "integer"}, "1" * 5000, "1" * 5000),
        ({"type": "number"}, "2.50", 2.5),
        ({"type": "number"}, "2", 2),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "string"}, "5", "5"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "five", "five"),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": True}, "true", True),
        ({"type": "array"}, "[1, {}]", [1, {}]),
        ({"type": "array"}, "{}", "{}"),
        ({"type": "object"}, '{"a": [NaN]}', '{"a": [NaN]}'),
        ({"type": "object"}, "[" * 5000, "[" * 5000),
        ({}, "5", "5"),
        (None, "5", "5"),
        ({"type": 3, "anyOf": 4, "enum": "x"}, "5", "5"),
    ],
)
def test_the_schema_says_what_a_text_stands_for(schema: Any, text: str, value: Any) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"x": schema}}}}]
    for form, write in (("qwen3_coder", qwen3_coder), ("glm", glm)):
        parser = make_parser(form, None)
        assert parser is not None
        (call,) = parser.parse(write("add", {"x": text}), 0, tools).tool_calls
        assert call.arguments == {"x": value}
        assert type(call.arguments["x"]) is type(value)


@pytest.mark.parametrize("tools", [[{}], [{"function": 3}], [{"function": {"name": "add", "parameters": []}}], []])
def test_tools_that_are_none_give_no_types(tools: Any) -> None:
    parser = make_parser("glm", None)
    assert parser is not None
    assert parser.parse(glm("add", {"a": 5}), 0, tools).tool_calls[0].arguments == {"a": "5"}


MALFORMED = [
    ("qwen3_coder", "<tool_call>\n</tool_call>", "has no function"),
    ("qwen3_coder", '<tool_call>{"name": "f"}</tool_call>', "has no function"),
    ("qwen3_coder", "<tool_call><function=></function></tool_call>", "no name of 1 to 64"),
    ("qwen3_coder", "<tool_call><function=f>x</function></tool_call>", "between its parameters"),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>1<parameter=a>2</parameter></function></tool_call>",
     "'a' twice"),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>1", "does not end"),
    ("glm", "<tool_call></tool_call>", "no name of 1 to 64"),
    ("glm", "<tool_call>f<arg_key>a</arg_key></tool_call>", "between its arguments"),
    ("glm", "<tool_call>f<arg_key>a</arg_key>1<arg_value>2</arg_value></tool_call>", "between its arguments"),
    ("glm", glm("f", {"a": 1}).replace("</tool_call>", glm("f", {"a": 2})[len("<tool_call>f"):]), "'a' twice"),
    ("glm", "<tool_call>f<arg_key>a</arg_key><arg_value>2", "does not end"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "error"), MALFORMED)
def test_a_call_in_tags_that_is_malformed_says_what_is_wrong(form: str, text: str, error: str) -> None:
    (call,) = calls(form, text)
    assert call.arguments is None
    assert error in call.error
    after = calls(form, text + "\n" + dict(WRITERS)[form]("add", {"a": 1}))
    assert text.endswith("</tool_call>") is (after[-1].arguments == {"a": 1}), "the next one is read"
