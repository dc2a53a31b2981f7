"""A vLLM engine for tests: a small one whose samples go on, and the processes that it starts."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from safetensors.numpy import load_file, save_file

from routershift.trajectory import Completion
from services.cli.local.redis import PROGRAMS
from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from tests.support.models import EOS, save_model

NEEDS_VLLM = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm"),
]
SLOTS = 4
PROMPT = [2, 9, 4, 21]
# Tied head, experts of a size that the kernels pad, dense layers around the routed one: what an update may forget.
CHANGES: dict[str, Any] = {"tie_word_embeddings": True, "moe_intermediate_size": 48, "decoder_sparse_step": 2}


def params(
    n: int = 1,
    max_tokens: int = 24,
    top_k: int = 0,
    seed: int | None = 1,
    stop: tuple[str, ...] = (),
    logprobs: int = 0,
) -> EngineSampling:
    return EngineSampling(n, 1.0, 1.0, top_k, max_tokens, seed, stop=stop, logprobs=logprobs)


def long(n: int = 1, max_tokens: int = 200, seed: int = 5) -> EngineSampling:
    """Samples that go on to `max_tokens`: <eos> is never one of the two that are drawn from."""
    return params(n, max_tokens, top_k=2, seed=seed)


def new_engine(folder: Path, **settings: Any) -> VllmEngine:
    # One MiB is four blocks of 128 tokens and vLLM's null block: two whole sequences.
    return VllmEngine(folder, EngineOptions(max_num_seqs=SLOTS), VllmSettings(**{"kv_cache_bytes": 1 << 20} | settings))


def save_endless(folder: Path, seed: int) -> Path:
    """A model whose logit of <eos> is always 0: never among the two highest of 24, whatever the others are."""
    file = save_model(folder, seed=seed, **CHANGES) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][EOS] = 0
    save_file(tensors, file, {"format": "pt"})
    return folder


async def settled(condition: Callable[[], bool]) -> None:
    for _ in iter(condition, True):
        await asyncio.sleep(0.001)


def vllm_metrics() -> dict[str, float]:
    """Those of this process's registry, by name; of the label sets, the sum."""
    samples = [sample for metric in REGISTRY.collect() for sample in metric.samples]
    names = {sample.name for sample in samples if sample.name.startswith("vllm:")}
    return {name: sum(sample.value for sample in samples if sample.name == name) for name in names}


async def collect(stream: AsyncIterator[Completion]) -> list[Completion]:
    return [piece async for piece in stream]


def children() -> set[int]:
    """This process's children that run, but for the standard library's own helper and the tests' Redis."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    rows = (line.split(None, 2) for line in listed.stdout.splitlines())
    return {
        int(pid)
        for pid, stat, args in rows
        if stat[0] != "Z" and not any(other in args for other in ("resource_tracker", *PROGRAMS, "ps -ww"))
    }
