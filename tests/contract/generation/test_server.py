"""The generation service in full: conversations, parameters, streams, overload, deadlines, replicas and status."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from routershift.client.channel import open_channel
from routershift.client.requests import Message
from routershift.client.status import raise_typed
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation import server as server_module
from shared.clients import GenerationClient
from shared.errors import DeadlineError, InvalidInputError, OverloadedError, PreconditionError
from shared.models.detokenizer import TextStream
from shared.streams.run import Run
from tests.support.generation import PROMPT, generation_server, save_chat_model
from tests.support.models import SYMBOLS, save_model

CONVERSATION: list[Message] = [
    {"role": "user", "content": "3,7:10"},
    {"role": "assistant", "content": "3+7"},
    {"role": "user", "content": "4,4:8"},
]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_conversation_reaches_the_model_as_its_own_template_writes_it(run: Run, tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert ids[:2] == [tokenizer.eos_token_id, SYMBOLS.index("3")], "the template's own, and none of the tokenizer's"
    assert tokenizer.encode("3")[0] == tokenizer.eos_token_id
    async with generation_server(run, tmp_path, model) as address, GenerationClient(address) as client:
        (chat,) = await client.generate(CONVERSATION, seed=4)
        (by_ids,) = await client.generate(np.array(ids), seed=4)
        assert chat.token_ids.tolist() == by_ids.token_ids.tolist()
        assert chat.logprobs.tolist() == by_ids.logprobs.tolist()
        with pytest.raises(InvalidInputError, match=r"chat\.messages of roles tool are refused.*no tools here"):
            await client.generate([Message(role="tool", content="4")])


async def test_a_model_without_a_template_says_so(run: Run, tmp_path: Path) -> None:
    async with generation_server(run, tmp_path) as address, GenerationClient(address) as client:
        with pytest.raises(PreconditionError, match=r"has no chat_template; add one .* or send text or token_ids"):
            await client.generate(CONVERSATION)


async def test_every_parameter_reaches_the_engine(run: Run, tmp_path: Path) -> None:
    async with generation_server(run, tmp_path) as address, GenerationClient(address) as client:
        (plain,) = await client.generate(PROMPT, seed=1, max_tokens=40, logprobs=3)
        assert plain.top_logprobs is not None
        assert plain.top_logprobs.token_ids.shape == (plain.token_ids.size, 3)
        assert (plain.top_logprobs.logprobs[:, 0] >= plain.logprobs).all()
        third = plain.text[2]
        (stopped,) = await client.generate(PROMPT, seed=1, max_tokens=40, stop=["no such", third])
        assert stopped.text == plain.text[: plain.text.index(third) + 1]
        (alone,) = await client.generate(PROMPT, seed=1, max_tokens=40, stop=plain.text[2:4])
        assert alone.text == plain.text[: plain.text.index(plain.text[2:4]) + 2], "one text, not its characters"
        (by_id,) = await client.generate(PROMPT, seed=1, max_tokens=40, stop_token_ids=[int(plain.token_ids[2])])
        assert by_id.token_ids.tolist() == stopped.token_ids.tolist()
        (likeliest,) = await client.generate(PROMPT, seed=1, min_p=1.0)
        (greedy,) = await client.generate(PROMPT, temperature=0)
        assert likeliest.token_ids.tolist() == greedy.token_ids.tolist()
        pieces = [p async for p in client.stream(PROMPT, seed=1, max_tokens=40, logprobs=3)]
        rows = [row for p in pieces if p.top_logprobs for row in p.top_logprobs.token_ids.tolist()]
        assert rows == plain.top_logprobs.token_ids.tolist()
        assert "".join(p.text for p in pieces) == plain.text


async def test_the_router_is_as_full_as_the_setting_says(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    none = generation_server(run, tmp_path, model, router_export="none")
    async with none as address, GenerationClient(address) as client:
        with pytest.raises(PreconditionError, match=r"generation\.router_export is none; set that to ids"):
            await client.generate(PROMPT, return_router=True)
        assert (await client.status()).router_export == pb.ROUTER_EXPORT_NONE
        assert len(await client.generate(PROMPT)) == 1
    exact_server = generation_server(run, tmp_path, model, router_scores="float16")
    async with exact_server as address, GenerationClient(address) as client:
        exported = metric("routershift_generation_router_bytes_total")
        (exact,) = await client.generate(PROMPT, seed=2, return_router=True)
        assert exact.router_trace is not None
        assert metric("routershift_generation_router_bytes_total") == exported + exact.router_trace.nbytes
    async with generation_server(run, tmp_path, model, router_layers=2) as address:
        async with GenerationClient(address) as client:
            (coded,) = await client.generate(PROMPT, seed=2, return_router=True)
        request = gen.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(seed=2), return_router=True)
        async with open_channel(address) as channel:
            answer = await gen_grpc.GenerationServiceStub(channel).Generate(request, timeout=10)
    assert answer.completions[0].router_trace.log_scores.dtype == pb.D_TYPE_UINT8
    assert coded.router_trace is not None
    assert coded.router_trace.layers is not None
    at = coded.router_trace.layers[..., None].astype(int)
    expected_ids, expected = (
        np.take_along_axis(v, at, 1) for v in (exact.router_trace.expert_ids, exact.router_trace.scores)
    )
    assert coded.router_trace.expert_ids.tolist() == expected_ids.tolist()
    assert 0 < np.abs(coded.router_trace.scores - expected).max() < 0.05


async def test_an_overload_is_refused_and_clients_come_back(run: Run, tmp_path: Path) -> None:
    request = gen.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(max_tokens=200))
    refusals = {"method": "Generate", "outcome": "resource_exhausted"}
    async with generation_server(run, tmp_path, max_num_seqs=1, max_waiting=1) as address:
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
            stub = gen_grpc.GenerationServiceStub(channel)
            answers = await asyncio.gather(*(stub.Generate(request) for _ in range(12)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 12
        for answer in refused:
            assert answer.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1 more exceed generation.max_num_seqs = 1 and generation.max_waiting = 1" in str(answer.details())
            assert ("grpc-retry-pushback-ms", "1000") in tuple(answer.trailing_metadata() or ())
            with pytest.raises(OverloadedError) as caught:
                raise_typed(answer, "Generate")
            assert caught.value.retry_after == 1.0
        before = metric("routershift_generation_requests_total", **refusals)
        async with GenerationClient(address) as client:
            calls = [client.generate(PROMPT, max_tokens=100) for _ in range(6)]
            assert all(len(completions) == 1 for completions in await asyncio.gather(*calls))
            with pytest.raises(InvalidInputError, match=r"sampling\.n is 3; allowed: 1 to 2"):
                await client.generate(PROMPT, n=3)
        assert metric("routershift_generation_requests_total", **refusals) > before


async def test_an_answer_too_large_for_a_message_is_a_bad_request_and_no_overload(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with generation_server(run, tmp_path) as address, GenerationClient(address) as client:
        monkeypatch.setattr(server_module, "MAX_MESSAGE_BYTES", 1 << 10)
        with pytest.raises(InvalidInputError, match=r"sampling\.n and sampling\.max_tokens make .* fewer samples"):
            await client.generate(PROMPT, n=8, max_tokens=40)
        assert len([piece async for piece in client.stream(PROMPT, n=8, max_tokens=40)]) > 8


async def test_a_deadline_frees_what_it_waited_for(run: Run, tmp_path: Path) -> None:
    async with generation_server(run, tmp_path, max_num_seqs=4) as address:
        async with GenerationClient(address, timeout=0.2) as client:
            with pytest.raises(DeadlineError, match="Generate"):
                await client.generate(PROMPT, n=512, max_tokens=200)
        async with GenerationClient(address) as client:
            async with asyncio.timeout(20):
                while (status := await client.status()).running_requests + status.waiting_requests:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert len(await client.generate(PROMPT)) == 1


async def test_status_tells_the_load(run: Run, tmp_path: Path) -> None:
    async with generation_server(run, tmp_path, max_num_seqs=2) as address, GenerationClient(address) as client:
        async for _ in client.stream(PROMPT, n=30, max_tokens=100):
            status = await client.status()
            if status.running_requests and status.waiting_requests:
                break
        assert status.running_requests in (1, 2)
        assert 0 < status.waiting_requests <= 29
        assert status.router_export == pb.ROUTER_EXPORT_TOPK


async def test_streams_are_timed(run: Run, tmp_path: Path) -> None:
    first, between = (
        "routershift_generation_first_token_seconds_count",
        "routershift_generation_inter_token_seconds_count",
    )
    begun, followed = metric(first), metric(between)
    tokens = metric("routershift_generation_tokens_total", kind="response")
    async with generation_server(run, tmp_path) as address, GenerationClient(address) as client:
        sizes = [piece.token_ids.size async for piece in client.stream(PROMPT, n=2, max_tokens=30)]
    assert metric(first) == begun + 1
    assert metric(between) == followed + len(sizes) - 2
    assert metric("routershift_generation_tokens_total", kind="response") == tokens + sum(sizes)


async def test_calls_go_round_the_replicas_and_past_one_that_is_gone(run: Run, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        names = ("one", "two")
        servers = {
            name: await stack.enter_async_context(generation_server(run, tmp_path, save_model(tmp_path / name)))
            for name in names
        }
        target = "ipv4:" + ",".join(servers.values())
        async with GenerationClient(target) as client:
            seen = {(await client.status()).model for _ in range(20)}
        assert seen == set(names)
        gone = f"ipv4:127.0.0.1:1,{servers['two']}"
        async with GenerationClient(gone) as client:
            assert {(await client.status()).model for _ in range(10)} == {"two"}


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "UpdateWeights"])
async def test_bytes_that_are_no_request_are_an_invalid_argument(run: Run, tmp_path: Path, method: str) -> None:
    async with generation_server(run, tmp_path) as address, open_channel(address) as channel:
        make: Any = channel.unary_stream if method == "GenerateStream" else channel.unary_unary
        call = make(f"/routershift.v1.GenerationService/{method}")(b"\xff\xff\xff", timeout=10)
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "request of 3 bytes is no message of this method" in await call.details()


def byte_level() -> Tokenizer:
    """One token a byte: a character of several bytes is several tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_of_text_add_up_and_never_cut_a_character(size: int) -> None:
    tokenizer = byte_level()
    text = "12 = αβγ, 世界 🙂!"
    tokens = tokenizer.encode(text + "<eos>").ids
    stream = TextStream(tokenizer)
    starts = range(0, len(tokens), size)
    pieces = [stream.add(tokens[i : i + size], last=i == starts[-1]) for i in starts]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_text_that_ends_within_a_character_is_told_as_the_whole_would_be() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("1世").ids[:-1]
    stream = TextStream(tokenizer)
    pieces = [stream.add([token], last=i == len(tokens) - 1) for i, token in enumerate(tokens)]
    assert "".join(pieces) == tokenizer.decode(tokens)
