"""Bodies that are no requests, or ask for what is not there: errors of OpenAI's form name field, value and fix."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.environments.gateway.errors import ApiError
from services.environments.gateway.schema import read_chat, read_completion
from tests.support.gateway import Scripted, gateway, save_tokenizer

HELLO: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hello"}
TOOL = {"type": "function", "function": {"name": "f"}}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}, fields]}


CHAT: list[tuple[dict[str, Any], int, str | None, str, str]] = [
    ({"model": "other"}, 404, "model", "model_not_found", "served here: 'tiny'"),
    ({"messages": []}, 400, "messages", "invalid_value", "at least 1"),
    ({"messages": "hello"}, 400, "messages", "invalid_value", "'hello'"),
    (message(role="robot", content=""), 400, "messages[1].role", "invalid_value", "'robot'"),
    (message(role="user"), 400, "messages[1].content", "invalid_value", "missing"),
    (message(role="tool", content="4"), 400, "messages[1].tool_call_id", "invalid_value", "name the call"),
    (message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]), 400, "messages[1].content",
     "invalid_value", "'image_url'; allowed: a text"),
    (message(role="assistant", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "[]"}}]),
     400, "messages[1].tool_calls[0].function.arguments", "invalid_value", "expected an object"),
    (message(role="user", content="x", tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}]),
     400, "messages[1]", "invalid_value", "expected assistant"),
    ({"n": 0}, 400, "n", "invalid_value", "0"),
    ({"n": True}, 400, "n", "invalid_value", "True"),
    ({"n": "2"}, 400, "n", "invalid_value", "'2'"),
    ({"temperature": 5}, 400, "temperature", "invalid_value", "less than or equal to 2"),
    ({"top_p": 0}, 400, "top_p", "invalid_value", "greater than 0"),
    ({"max_tokens": -1}, 400, "max_tokens", "invalid_value", "-1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "invalid_value", "set one"),
    ({"stop": [""]}, 400, None, "invalid_value", "stop"),
    ({"stop": ["x"] * 65}, 400, None, "invalid_value", "stop"),
    ({"seed": 2**65}, 400, "seed", "invalid_value", "seed"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "invalid_value", "logprobs is not true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value", "20"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0].type", "invalid_value", "'web_search'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "tools[0].function.name", "invalid_value",
     "a b"),
    ({"tools": [TOOL] * 129}, 400, "tools", "invalid_value", "128"),
    ({"tools": [TOOL], "tool_choice": "required"}, 400, "tool_choice", "unsupported_parameter", "auto"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, 400, "tool_choice",
     "unsupported_parameter", "forced"),
    ({"tool_choice": "auto"}, 400, "tool_choice", "invalid_value", "there are no tools"),
    ({"tools": [TOOL], "parallel_tool_calls": False}, 400, "parallel_tool_calls", "unsupported_parameter",
     "leave it out"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_parameter", "text"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_parameter", "leave it out"),
    ({"logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter", "leave it out"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort", "unsupported_parameter", "chat_template_kwargs"),
    ({"functions": [{"name": "f"}]}, 400, "functions", "unsupported_parameter", "use tools"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value", "set stream"),
    ({"temprature": 1}, 400, "temprature", "unknown_parameter", "take it out"),
    ({"store": True}, 400, "store", "unsupported_parameter", "leave it out"),
]  # fmt: skip
COMPLETIONS: list[tuple[dict[str, Any], int, str | None, str, str]] = [
    ({"prompt": []}, 400, None, "invalid_value", "prompt"),
    ({"prompt": [-1]}, 400, None, "invalid_value", "prompt"),
    ({"prompt": None}, 400, None, "invalid_value", "prompt"),
    ({"prompt": ["a", "b"], "stream": True}, 400, "prompt", "unsupported_parameter", "for each"),
    ({"prompt": ["a"] * 600, "n": 2}, 400, "prompt", "invalid_value", "1024 in all"),
    ({"echo": True}, 400, "echo", "unsupported_parameter", "leave it out"),
    ({"suffix": "x"}, 400, "suffix", "unsupported_parameter", "leave it out"),
    ({"best_of": 3}, 400, "best_of", "unsupported_parameter", "ask for n"),
    ({"logprobs": True}, 400, "logprobs", "invalid_value", "True"),
    ({"messages": []}, 400, "messages", "unknown_parameter", "take it out"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tiny"
    save_tokenizer(folder)
    return folder


@pytest_asyncio.fixture
async def http(words: Path) -> AsyncIterator[httpx2.AsyncClient]:
    policy = Scripted(words, [])  # has nothing to say: nothing bad gets as far as that
    async with gateway(policy, words) as url, httpx2.AsyncClient(base_url=url) as client:
        yield client
    assert policy.asked == []


def fault(answer: httpx2.Response) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


async def test_every_field_that_is_wrong_or_not_heeded_is_named(http: httpx2.AsyncClient) -> None:
    cases = [("/v1/chat/completions", HELLO, *case) for case in CHAT]
    cases += [("/v1/completions", TEXT, *case) for case in COMPLETIONS]
    for path, good, change, status, param, code, said in cases:
        answer = await http.post(path, json=good | change)
        error = fault(answer)
        assert answer.status_code == status, (change, error)
        assert error["code"] == code, (change, error)
        assert param is None or error["param"] == param, (change, error)
        assert said in error["message"], (change, error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"model": NaN}', "model is nan"),
        (b"[1]", "[1]"),
        (b'"\\ud800"', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}", "no JSON"),
        (b"1" * 10_000, "no JSON"),
    ],
)
async def test_a_body_that_is_none(http: httpx2.AsyncClient, body: bytes, said: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        answer = await http.post(path, content=body)
        assert answer.status_code == 400, body[:20]
        assert said in fault(answer)["message"]
        assert len(answer.content) < 4096


async def test_a_value_that_is_long_is_cut_in_the_message(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=HELLO | {"temprature": "x" * 1_000_000})
    assert answer.status_code == 400
    assert len(answer.content) < 1024


async def test_messages_that_the_template_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    save_tokenizer(folder, "{{ raise_exception('roles must alternate') }}")
    async with gateway(Scripted(folder, []), folder) as url, httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/chat/completions", json=HELLO)
        assert answer.status_code == 400
        assert "roles must alternate" in fault(answer)["message"]
        assert fault(answer)["param"] == "messages"


async def test_a_text_that_no_token_could_hold_is_not_tokenized(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json=TEXT | {"prompt": "x" * 200_000})
    assert answer.status_code == 400
    assert fault(answer)["code"] == "context_length_exceeded"


async def test_other_paths_and_methods(http: httpx2.AsyncClient) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
    ):
        answer = await http.request(method, path)
        assert (answer.status_code, fault(answer)["code"]) == (status, code)


async def test_what_the_client_says_without_meaning_it_is_taken(words: Path) -> None:
    neutral = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "metadata": {"a": "b"},
        "response_format": {"type": "text"}, "tool_choice": "none", "store": False, "stop": None, "stream": False,
        "top_k": -1, "logprobs": False, "seed": -5, "modalities": ["text"], "service_tier": "auto",
    }  # fmt: skip
    policy = Scripted(words, ["the cat"])
    async with gateway(policy, words) as url, httpx2.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/chat/completions", json=HELLO | neutral)
    assert answer.status_code == 200, answer.text
    assert policy.asked[0][1]["seed"] == 2**64 - 5


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    field=st.sampled_from(
        [*sorted({field for change, *_ in CHAT + COMPLETIONS for field in change}), "max_completion_tokens", "top_k",
         "min_p", "stop_token_ids", "chat_template_kwargs", "stream", "best_of", "return_token_ids", "user"]
    ),
    value=VALUES,
)  # fmt: skip
def test_any_value_of_any_field_is_read_or_refused_by_name(field: str, value: Any) -> None:
    for read, good in ((read_chat, HELLO), (read_completion, TEXT)):
        refused: ApiError | None = None
        try:
            read(json.dumps(good | {field: value}).encode()).sampling()
        except ApiError as error:
            refused = error
        assert refused is None or (refused.status == 400 and str(refused))


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=64) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_refused_in_words(body: bytes) -> None:
    for read in (read_chat, read_completion):
        with pytest.raises(ApiError):
            read(body)
