"""Ten thousand malformed and odd requests leave a real service of each engine, in a process of its own, as it was."""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from shared.clients import GenerationClient
from shared.process import logs
from tests.support.generation import PROMPT, save_chat_model
from tests.support.models import VOCABULARY

NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm")
REQUESTS = 10_000
AT_ONCE = 32
# What is answered may depend on the load, but it is always one of these.
TYPED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# 1 MB is usual after the first half has warmed everything up; a leak of 2 KiB a request is 10 MB.
MAX_GROWTH = (REQUESTS // 2) * (2 << 10)
# oneDNN keeps up to 1,024 kernels, one for each number of tokens in a step: 100 MB that are slow to come, and no leak.
_FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}

_METHOD = "/routershift.v1.GenerationService/"
_ODD_FLOATS = st.floats(width=32) | st.floats(0, 1, width=32)
_UINT32 = st.integers(0, 8) | st.integers(0, 2**32 - 1)
_TEXT = st.text("0123456789+-*/=,: ", max_size=12) | st.text(max_size=40)
_TOKENS = st.lists(st.integers(0, VOCABULARY) | st.integers(0, 2**32 - 1), max_size=8)


def _sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """None leaves a field out."""
    return st.none() | strategy


_SAMPLING = st.builds(
    pb.SamplingParams,
    n=_sometimes(_UINT32),
    temperature=_sometimes(_ODD_FLOATS),
    top_p=_sometimes(_ODD_FLOATS),
    top_k=_sometimes(_UINT32),
    max_tokens=_sometimes(_UINT32),
    seed=_sometimes(st.integers(0, 2**64 - 1)),
    min_p=_sometimes(_ODD_FLOATS),
    stop=st.lists(st.text(max_size=3), max_size=3),
    stop_token_ids=st.lists(st.integers(0, VOCABULARY) | _UINT32, max_size=3),
    logprobs=_sometimes(_UINT32),
)
_INPUT = st.one_of(
    st.builds(gen.GenerateRequest, text=_TEXT, return_router=st.booleans()),
    st.builds(gen.GenerateRequest, token_ids=st.builds(gen.TokenIds, ids=_TOKENS), return_router=st.booleans()),
    st.builds(
        gen.GenerateRequest,
        chat=st.builds(
            gen.ChatMessages, messages=st.lists(st.builds(gen.ChatMessage, role=_TEXT, content=_TEXT), max_size=3)
        ),
    ),
    st.builds(gen.GenerateRequest),
)
_MANIFEST = st.builds(
    pb.WeightsManifest,
    version=st.integers(-(2**63), 2**63 - 1),
    folder=st.sampled_from(["", "v1", "..", "/etc", "model"]) | _TEXT,
    files=st.lists(st.builds(pb.WeightsFile, name=_TEXT | st.just("model.safetensors")), max_size=2),
)


def _examples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    found: list[Any] = []

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def _odd_calls() -> list[tuple[str, bytes]]:
    """The method and the bytes of each call. Inputs and parameters are drawn apart, and half of the parameters meet
    with some input at random: enough are right to reach the engine."""
    chance = random.Random(0)
    inputs, samplings = _examples(_INPUT, 500), _examples(_SAMPLING, 500)
    manifests, garbage = _examples(_MANIFEST, 200), _examples(st.binary(max_size=64), 200)
    methods = ["Generate", "GenerateStream", "UpdateWeights", "GetStatus"]
    calls = [("UpdateWeights", gen.UpdateWeightsRequest(manifest=each).SerializeToString()) for each in manifests]
    calls += [(chance.choice(methods), each) for each in garbage]
    while len(calls) < REQUESTS:
        request = gen.GenerateRequest()
        request.CopyFrom(chance.choice(inputs))
        request.sampling.CopyFrom(chance.choice(samplings))
        for field in pb.SamplingParams.DESCRIPTOR.fields:
            if chance.random() < 0.5:
                request.sampling.ClearField(field.name)  # type: ignore[arg-type]  # one of the names that the stubs list
        if len(calls) % 2:
            calls.append(("Generate", request.SerializeToString()))
        else:
            calls.append(("GenerateStream", gen.GenerateStreamRequest(request=request).SerializeToString()))
    chance.shuffle(calls)
    return calls


@pytest.fixture(params=["torch", pytest.param("vllm", marks=[pytest.mark.vllm, NEEDS_VLLM])])
def service(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[tuple[psutil.Process, str]]:
    """A generation service as the command line starts it: its process and its address."""
    model = save_chat_model(tmp_path / "model", max_position_embeddings=32)
    flags = [
        "run.id=odd", f"run.folder={tmp_path}", f"run.model={model}", f"generation.engine={request.param}",
        "generation.vllm.kv_cache_bytes=67108864", "generation.port=0", "generation.metrics_port=0",
        # Many and short: what is asked here is not how fast it samples.
        "generation.max_num_seqs=32", "generation.max_waiting=32", "generation.max_tokens=4",
    ]  # fmt: skip
    arguments = [part for flag in flags for part in ("--set", flag)]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "serve", "generation", *arguments],
        env=os.environ | {"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1"} | _FEW_KERNELS,
    )
    try:
        yield psutil.Process(process.pid), _address(logs.path(tmp_path / "odd" / "logs", "generation"), process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode == 0


def _address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    while process.poll() is None:
        if log.is_file() and (found := re.search(r"serves gRPC on ([\d.:]+)", log.read_text())):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the service ended with code {process.returncode}")


async def _fire(address: str, calls: list[tuple[str, bytes]]) -> Counter[grpc.StatusCode]:
    answers: Counter[grpc.StatusCode] = Counter()
    waiting = iter(calls)
    # Retries would hide what the service says.
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:

        async def caller() -> None:
            for method, data in waiting:
                # As a stream, whatever it is: reading it to its end is what both kinds have in common.
                start: Any = channel.unary_stream(_METHOD + method)
                call = start(data, timeout=60)
                with suppress(grpc.aio.AioRpcError):
                    async for _ in call:
                        pass
                code = await call.code()
                assert code in TYPED, (method, data, code, await call.details())
                answers[code] += 1

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return answers


def _memory(process: psutil.Process) -> int:
    """Bytes, of its children too: vLLM samples in one."""
    return sum(int(each.memory_info().rss) for each in (process, *process.children(recursive=True)))


async def test_odd_requests_leave_it_serving(service: tuple[psutil.Process, str]) -> None:
    process, address = service
    calls = _odd_calls()
    half = len(calls) // 2
    answers = await _fire(address, calls[:half])
    before = _memory(process)
    answers += await _fire(address, calls[half:])
    assert answers.total() == REQUESTS
    assert answers[grpc.StatusCode.OK] > REQUESTS / 50
    assert answers[grpc.StatusCode.INVALID_ARGUMENT] > REQUESTS / 10
    assert _memory(process) - before < MAX_GROWTH
    async with GenerationClient(address) as client:
        status = await client.status()
        assert (status.running_requests, status.waiting_requests, status.version) == (0, 0, 0)
        assert len(await client.generate(PROMPT, n=4)) == 4
