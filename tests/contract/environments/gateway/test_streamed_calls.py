"""Calls of tools in streams, asked by the real `openai` package: content as it comes, calls when they are whole."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import pytest
from openai import AsyncOpenAI

from routershift.client.requests import Sampling
from routershift.trajectory import Completion
from services.environments.tool_calls.registry import make_parser
from tests.support.gateway import SPECIAL, Scripted, gateway, save_tokenizer

ASK: list[Any] = [{"role": "user", "content": "What is 6 times 7?"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "multiply", "parameters": PARAMETERS}}]
FORMS = {
    "hermes": (
        'Let me see.\n<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": "7"}}\n</tool_call>',
        '<tool_call>{"name": "multiply", "arguments": {"a": }}</tool_call>',
    ),
    "deepseek": (
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>multiply\n```json\n"
        '{"a": 6, "b": "7"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁call▁begin｜>multiply<｜tool▁sep｜>{<｜tool▁call▁end｜>",
    ),
    "qwen3_coder": (
        "Let me see.\n<tool_call>\n<function=multiply>\n<parameter=a>\n6\n</parameter>\n<parameter=b>\n7\n"
        "</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=multiply></tool_call>",
    ),
    "glm": (
        "Let me see.\n<tool_call>multiply\n<arg_key>a</arg_key>\n<arg_value>6</arg_value>\n<arg_key>b</arg_key>\n"
        "<arg_value>7</arg_value>\n</tool_call>",
        "<tool_call>multiply<arg_key>a</tool_call>",
    ),
    "harmony": (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.multiply json<|message|>"
        '{"a": 6, "b": "7"}<|call|>',
        "<|start|>assistant to=functions.multiply<|channel|>commentary json<|message|>{<|call|>",
    ),
}
_HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder, special=[*SPECIAL, *_HARMONY])
    return folder


def told(message: Any) -> tuple[Any, ...]:
    calls = [(call.type, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    return message.content, getattr(message, "reasoning_content", None), calls


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "content", "calls"),
    [
        ("{call}", "Let me see.", 1),
        ("{call}\n{call}", None, 2),
        ("{broken}", None, 0),
        ("{call}\n{broken}\n{call}", None, 2),
    ],
)
async def test_a_stream_adds_up_to_the_whole_answer(
    words: Path, form: str, shape: str, content: str | None, calls: int
) -> None:
    call, broken = FORMS[form]
    said = shape.replace("{call}", call).replace("{broken}", broken)
    policy = Scripted(words, [said, said])
    async with (
        gateway(policy, words, parser=make_parser(form, None)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        whole = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
        async with client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as events:
            final = await events.get_final_completion()
    streamed = final.choices[0]
    assert told(streamed.message) == told(whole.message)
    assert streamed.finish_reason == whole.finish_reason == ("tool_calls" if calls else "stop")
    assert [name for _, name, _ in told(whole.message)[2]] == ["multiply"] * calls
    assert all(arguments == '{"a": 6, "b": "7"}' for _, _, arguments in told(whole.message)[2])
    assert content is None or whole.message.content == content
    if "{broken}" in shape:
        assert broken.removeprefix("<|start|>") in (whole.message.content or ""), "a malformed call is content"
    ids = [call.id for call in streamed.message.tool_calls or ()]
    assert len(set(ids)) == calls


class Pausing(Scripted):
    """Goes on when it is told so, wherever its response is at that time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pauses: list[tuple[str, asyncio.Event]] = []

    async def stream(
        self, prompt: Sequence[int], *, return_router: bool = False, **sampling: Unpack[Sampling]
    ) -> AsyncIterator[Completion]:
        said, pauses = "", list(self.pauses)
        async for piece in super().stream(prompt, return_router=return_router, **sampling):
            yield piece
            said += piece.text
            while pauses and pauses[0][0] in said:
                await pauses.pop(0)[1].wait()


async def test_content_and_calls_come_before_the_response_has_ended(words: Path) -> None:
    call, _ = FORMS["hermes"]
    policy = Pausing(words, [f"{call}\n{call}"])
    content_came, call_came = asyncio.Event(), asyncio.Event()
    policy.pauses = [("see.", content_came), ("</tool_call>", call_came)]
    content, calls, reasons = "", [], []
    async with (
        asyncio.timeout(60),
        gateway(policy, words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, stream=True)
        async for chunk in stream:
            delta = chunk.choices[0].delta
            content += delta.content or ""
            for each in delta.tool_calls or ():
                assert each.function is not None
                calls.append((each.index, each.function.name, each.function.arguments))
            reasons += [reason for choice in chunk.choices if (reason := choice.finish_reason)]
            if content == "Let me see.":
                content_came.set()
            if calls:
                assert content_came.is_set()
                call_came.set()
    assert [index for index, _, _ in calls] == [0, 1]
    assert {(name, arguments) for _, name, arguments in calls} == {("multiply", '{"a": 6, "b": "7"}')}
    assert (reasons, content[:11]) == (["tool_calls"], "Let me see.")


async def test_harmony_without_tools_is_read_by_its_channels(words: Path) -> None:
    said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is 42.<|return|>"
    policy = Scripted(words, [said])
    async with (
        gateway(policy, words, parser=make_parser("harmony", None)) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        message = (await client.chat.completions.create(model="tiny", messages=ASK)).choices[0].message
    assert told(message) == ("It is 42.", "Hm.", [])


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_text_within_a_call_leaves_it_whole(words: Path, streamed: bool) -> None:
    call, _ = FORMS["hermes"]
    policy = Scripted(words, [call])
    asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "tools": TOOLS, "stop": ["</tool_call>"]}
    async with (
        gateway(policy, words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        if streamed:
            async with client.chat.completions.stream(**asked) as events:
                message: Any = (await events.get_final_completion()).choices[0].message
        else:
            message = (await client.chat.completions.create(**asked)).choices[0].message
    assert told(message)[2] == [("function", "multiply", '{"a": 6, "b": "7"}')]
