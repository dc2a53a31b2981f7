"""Plain inference over HTTP, asked by the real `openai` package, before a real generation service."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from shared.clients import GenerationClient
from shared.models.tokenizer import backend, load_tokenizer
from shared.streams.run import Run
from tests.support.gateway import Scripted, gateway, save_agent_model, save_tokenizer
from tests.support.generation import generation_server

ASK: list[Any] = [{"role": "user", "content": "What is 6 times 7?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Computes.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]
CALL = 'Let me see.\n<tool_call>\n{"name": "calculate", "arguments": {"expression": "6*7"}}\n</tool_call>'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_agent_model(tmp_path_factory.mktemp("gateway") / "tiny")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer alone, for policies that follow a script."""
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


@asynccontextmanager
async def real(run: Run, folder: Path, model: Path) -> AsyncIterator[tuple[AsyncOpenAI, GenerationClient]]:
    async with (
        generation_server(run, folder, model, max_model_len=256) as address,
        GenerationClient(address) as generation,
        gateway(generation, model) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client, generation


async def test_chat_is_what_the_policy_samples_from_the_rendered_tokens(run: Run, tmp_path: Path, model: Path) -> None:
    tokenizer = load_tokenizer(model)
    prompt = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    async with real(run, tmp_path, model) as (client, generation):
        assert [card.id async for card in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "routershift"
        asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "seed": 3, "max_tokens": 9, "n": 2}
        answer = await client.chat.completions.create(
            **asked, logprobs=True, top_logprobs=2, extra_body={"return_token_ids": True}
        )
        samples = await generation.generate(prompt, seed=3, max_tokens=9, n=2, logprobs=2)
        pieces: dict[int, str] = {0: "", 1: ""}
        reasons: dict[int, str | None] = {}
        last = None
        async for chunk in await client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ):
            last = chunk
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(sample.token_ids.size for sample in samples)
    assert answer.model_extra is not None
    assert answer.model_extra["prompt_token_ids"] == prompt
    assert answer.system_fingerprint == "version-0"
    for choice, sample in zip(answer.choices, samples, strict=True):
        assert choice.message.content == sample.text == pieces[choice.index]
        assert choice.finish_reason == sample.finish_reason == reasons[choice.index]
        assert choice.model_extra is not None
        assert choice.model_extra["token_ids"] == sample.token_ids.tolist()
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [token.logprob for token in choice.logprobs.content] == sample.logprobs.tolist()
        assert sample.top_logprobs is not None
        tops = [[top.logprob for top in token.top_logprobs] for token in choice.logprobs.content]
        assert tops == sample.top_logprobs.logprobs.tolist()
    assert last is not None
    assert last.choices == []
    assert last.usage == answer.usage


async def test_completions_take_text_and_token_ids(run: Run, tmp_path: Path, model: Path) -> None:
    ids: list[int] = backend(load_tokenizer(model)).encode("a b").ids
    async with real(run, tmp_path, model) as (client, generation):
        (sample,) = await generation.generate(ids, seed=1, max_tokens=6)
        asked: dict[str, Any] = {"model": "tiny", "seed": 1, "max_tokens": 6}
        by_text = await client.completions.create(prompt="a b", logprobs=1, **asked)
        by_ids = await client.completions.create(prompt=ids, **asked)
        several = await client.completions.create(prompt=["a b", "b"], **asked)
        stream = await client.completions.create(prompt="a b", stream=True, **asked)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert by_text.choices[0].text == by_ids.choices[0].text == several.choices[0].text == sample.text == streamed
    assert [choice.index for choice in several.choices] == [0, 1]
    logprobs = by_text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == sample.logprobs.tolist()
    assert logprobs.tokens is not None
    assert logprobs.text_offset == np.cumsum([0, *map(len, logprobs.tokens[:-1])]).tolist()


async def test_generations_own_refusals_name_the_field_of_the_request(run: Run, tmp_path: Path, model: Path) -> None:
    async with real(run, tmp_path, model) as (client, _):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=5000)
        assert (refused.value.param, refused.value.type) == ("max_tokens", "invalid_request_error")
        assert "the model holds 256 tokens" in refused.value.message
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="tiny", prompt=[[1] * 300])
        assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="tiny", prompt=[100000])
        assert refused.value.param == "prompt"


def test_the_synchronous_client(words: Path) -> None:
    def ask(url: str) -> tuple[str | None, list[str]]:
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            whole = client.chat.completions.create(model="tiny", messages=ASK)
            stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
            return whole.choices[0].message.content, [c.choices[0].delta.content or "" for c in stream]

    async def serve() -> tuple[str | None, list[str]]:
        async with gateway(Scripted(words, ["the cat", "a b"]), words) as url:
            return await asyncio.to_thread(ask, url)

    content, streamed = asyncio.run(serve())
    assert content == "the cat"
    assert "".join(streamed) == "a b"


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_of_tools_are_told_as_such_and_read_back(words: Path, streamed: bool) -> None:
    policy = Scripted(words, [CALL, "It is 42."])
    async with (
        gateway(policy, words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        if streamed:
            async with client.chat.completions.stream(model="tiny", messages=ASK, tools=TOOLS) as events:
                choice: Any = (await events.get_final_completion()).choices[0]
        else:
            choice = (await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        (call,) = choice.message.tool_calls
        assert call.function.name == "calculate"
        assert json.loads(call.function.arguments) == {"expression": "6*7"}
        said = choice.message.model_dump(exclude={"parsed"})
        for each in said["tool_calls"]:
            each["function"].pop("parsed_arguments", None)
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        last = await client.chat.completions.create(model="tiny", messages=[*ASK, said, result], tools=TOOLS)
    assert last.choices[0].message.content == "It is 42."
    read = policy.tokens.decode(policy.asked[1][0], skip_special_tokens=False)
    assert read.startswith("<|im_start|>system\n# Tools\n")
    assert CALL in read, "arguments reach the template as an object, which it writes as JSON"
    assert "<tool_response>\n42\n</tool_response>" in read


async def test_without_tools_or_with_none_a_call_is_text(words: Path) -> None:
    async with (
        gateway(Scripted(words, [CALL, CALL, "<tool_call>{oops</tool_call>"]), words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        plain = await client.chat.completions.create(model="tiny", messages=ASK)
        none = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS, tool_choice="none")
        broken = await client.chat.completions.create(model="tiny", messages=ASK, tools=TOOLS)
    for answer in (plain, none):
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].finish_reason == "stop"
    assert broken.choices[0].message.content == "<tool_call>{oops</tool_call>", "a malformed call is not lost"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_text_is_left_out(words: Path, streamed: bool) -> None:
    policy = Scripted(words, ["the cat</answer> a", "the cat</answer> a"])
    async with (
        gateway(policy, words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "tiny", "messages": ASK, "stop": ["</answer>", "zzz"]}
        if streamed:
            stream = await client.chat.completions.create(stream=True, **asked)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        else:
            text = (await client.chat.completions.create(**asked)).choices[0].message.content or ""
    assert text == "the cat"
    assert list(policy.asked[0][1]["stop"]) == ["</answer>", "zzz"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_goes_away_cancels_its_sequences(words: Path, streamed: bool) -> None:
    policy = Scripted(words, ["the cat"], waits=asyncio.Event())
    async with (
        gateway(policy, words) as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        asked = asyncio.create_task(client.chat.completions.create(model="tiny", messages=ASK, stream=streamed))
        await policy.was_asked.wait()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        async with asyncio.timeout(30):
            await policy.was_cancelled.wait()
