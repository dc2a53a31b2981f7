"""Calls of tools are read as vLLM's own parsers read them: no engine is started."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.environments.tool_calls.registry import make_parser
from tests.support.gateway import SPECIAL, save_tokenizer

pytest.importorskip("vllm")
pytestmark = pytest.mark.timeout(300)  # importing it takes a while

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "sure": {"type": "boolean"},
        "items": {"type": "array", "items": {"type": "string"}},
        "options": {"type": "object"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"text": "a b", "count": 5},
    {"text": "5", "share": 2.5, "sure": True},
    {"text": 'two\nlines, "quoted" < & é', "items": ["a", "b"], "options": {"deep": [1, {"x": None}]}},
    {"text": "null", "maybe": None, "sure": False},
    {"maybe": 7, "unknown": "stays a text"},
    {"text": "  two spaces  "},
]
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>"]  # fmt: skip


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _hermes(name: str, arguments: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _deepseek_v3(name: str, arguments: Mapping[str, Any]) -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```<｜tool▁call▁end｜>"
    )


def _deepseek_v31(name: str, arguments: Mapping[str, Any]) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>"


def _qwen3_coder(name: str, arguments: Mapping[str, Any]) -> str:
    inner = "".join(f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def _glm(name: str, arguments: Mapping[str, Any]) -> str:
    inner = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_plain(value)}</arg_value>\n" for key, value in arguments.items()
    )
    return f"<tool_call>{name}\n{inner}</tool_call>"


# Of each form of ours, the name that vLLM has for it, and how a call is written.
FORMS: list[tuple[str, str, Callable[[str, Mapping[str, Any]], str]]] = [
    ("hermes", "hermes", _hermes),
    ("deepseek", "deepseek_v3", _deepseek_v3),
    ("deepseek", "deepseek_v31", _deepseek_v31),
    ("qwen3_coder", "qwen3_coder", _qwen3_coder),
    ("glm", "glm45", _glm),
]


@pytest.mark.parametrize(("form", "name", "write"), FORMS, ids=[name for _, name, _ in FORMS])
def test_calls_are_those_that_vllm_reads(tmp_path: Path, form: str, name: str, write: Any) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    tokenizer = save_tokenizer(tmp_path / "tiny", special=[*SPECIAL, *TAGS])
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS}
    request = ChatCompletionRequest(**asked)
    ours = make_parser(form, None)
    assert ours is not None
    for arguments in ARGUMENTS:
        calls = write("look_up", arguments) + "\n" * (form != "deepseek") + write("look_up", {"count": 1})
        text = (
            f"I look.\n<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>" if form == "deepseek" else f"I look.\n{calls}"
        )
        theirs = ToolParserManager.get_tool_parser(name)(tokenizer, request.tools).extract_tool_calls(text, request)
        parsed = ours.parse(text, 0, TOOLS)
        read = [(call.function.name, json.loads(call.function.arguments)) for call in theirs.tool_calls]
        assert [(call.name, call.arguments) for call in parsed.tool_calls] == read
        assert read == [("look_up", arguments), ("look_up", {"count": 1})]
        assert [call.error for call in parsed.tool_calls] == ["", ""]
        assert parsed.content == (theirs.content or "").strip() == "I look."
