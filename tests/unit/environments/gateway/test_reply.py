"""The message that a response becomes, told in pieces or whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.environments.gateway.reply import Delta, Reply
from services.environments.tool_calls.registry import AUTO, FORMS, make_parser

NAMES = [name for name in FORMS if name != AUTO]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}]
WHOLE = ['<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>',
         "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>",
         "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>",
         '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>',
         '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>']  # fmt: skip
PIECES = [*WHOLE, "<tool_call>", "</tool_call>", "<|start|>", "<|channel|>final", "<|channel|>analysis", "<|message|>",
          "<|end|>", "<｜tool▁calls▁begin｜>", " ", "\n", "STOP", "ST", "x"]  # fmt: skip


def reply(form: str, calls_tools: bool, stops: list[str]) -> Reply:
    parser = make_parser(form, None)
    assert parser is not None
    return Reply(parser.reader(tools=TOOLS), calls_tools, stops)


def said(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, str]]]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for delta in deltas for call in delta.calls]
    return "".join(delta.content for delta in deltas), "".join(delta.thoughts for delta in deltas), calls


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=10),
    cuts=st.sets(st.integers(0, 400), max_size=12),
    calls_tools=st.booleans(),
    stops=st.sampled_from([[], ["STOP"], ["</tool_call>", "x"], ["\n"]]),
)
def test_however_it_is_cut_a_response_is_the_same_message(
    form: str, parts: list[str], cuts: set[int], calls_tools: bool, stops: list[str]
) -> None:
    text = "".join(parts)
    places = sorted(cut for cut in cuts if cut <= len(text))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    streamed, whole = reply(form, calls_tools, stops), reply(form, calls_tools, stops)
    deltas = [*map(streamed.add, pieces), streamed.add("", last=True)]
    assert said(deltas) == said([whole.add(text, last=True)])
    message = whole.message
    assert (message["content"] or "") == said(deltas)[0]
    assert len(message.get("tool_calls", ())) == len(said(deltas)[2])
    assert calls_tools or not whole.calls


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("  plain \n", "  plain \n", 0),
        ("Look.\n" + WHOLE[0] + "\n", "Look.", 1),
        ("\n" + WHOLE[0] + "\n" + WHOLE[0], None, 2),
        ("\n" + WHOLE[0] + "\nDone. ", "Done.", 1),
        ("A\n" + WHOLE[0] + "\nB", "A\n\nB", 1),
        ("A <tool_call>{} ", "A <tool_call>{} ", 0),
        ("A <tool_call>{</tool_call> " + WHOLE[0], "A <tool_call>{</tool_call>", 1),
    ],
)
def test_content_around_calls(text: str, content: str | None, calls: int) -> None:
    made = reply("hermes", True, [])
    made.add(text, last=True)
    assert (made.message["content"], made.calls) == (content, calls)
