"""What vLLM makes of a request where memory is short, and what it says of itself."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routershift.trajectory import Completion, FinishReason
from services.generation.engines.vllm.engine import VllmEngine
from shared.errors import InvalidInputError
from tests.support.engines import publish
from tests.support.models import SYMBOLS
from tests.support.reference import Reference, check, log_distribution
from tests.support.vllm import NEEDS_VLLM, PROMPT, SLOTS, children, long, params, settled, vllm_metrics

pytestmark = NEEDS_VLLM


async def test_preempted_samples_keep_their_rows(
    engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    version = await publish(engine, folders["A"])
    sampling = long(n=4)
    samples = await engine.generate(PROMPT, sampling)
    blocks = sum(1 + (len(sample.token_ids) > 128) for sample in samples)
    assert blocks == 8, "each takes two of the four blocks, so some were preempted"
    for sample in samples:
        check(sample, PROMPT, sampling, {version: references["A"]})
    assert engine.load.preemptions > 0


async def test_a_stop_string_ends_a_preempted_sample_with_all_its_rows(
    engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    version = await publish(engine, folders["A"])
    sampling = long(n=4)
    texts = ["".join(SYMBOLS[token] for token in s.token_ids) for s in await engine.generate(PROMPT, sampling)]
    longest = max(texts, key=len)
    stop = longest[140:154]  # beyond where four samples share four blocks
    preemptions = engine.load.preemptions
    stopped = await engine.generate(PROMPT, replace(sampling, stop=(stop, "never")))
    assert engine.load.preemptions > preemptions
    for sample, text in zip(stopped, texts, strict=True):
        if stop in text:
            assert sample.finish_reason == FinishReason.STOP
            assert len(sample.token_ids) == text.index(stop) + len(stop)
        else:
            assert len(sample.token_ids) == len(text)
        check(sample, PROMPT, sampling, {version: references["A"]})


async def test_stop_strings_need_a_tokenizer(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_tokenizer", None)
    with pytest.raises(InvalidInputError, match=r"tokenizer\.json"):
        await engine.generate(PROMPT, params(stop=("1",)))


async def test_merged_pieces_keep_the_most_likely_tokens(
    engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    version = await publish(engine, folders["A"])
    sampling = params(max_tokens=40, top_k=4, logprobs=6)
    (whole,) = await engine.generate(PROMPT, sampling)
    assert whole.top_logprobs is not None
    pieces: list[Completion] = []
    async for piece in engine._sample(PROMPT, sampling, 0, delta=True):
        if len(pieces) == 1:
            await settled(lambda: engine.load.running == 0)
        pieces.append(piece)
    assert len(pieces) < len(whole.token_ids)
    tops = [piece.top_logprobs for piece in pieces if piece.top_logprobs is not None]
    assert [len(top.token_ids) for top in tops] == [len(piece.token_ids) for piece in pieces]
    np.testing.assert_array_equal(np.concatenate([top.logprobs for top in tops]), whole.top_logprobs.logprobs)
    kept = np.s_[:, :4]  # the others were cut off: any of them are equally unlikely
    ids = np.concatenate([top.token_ids for top in tops])
    np.testing.assert_array_equal(ids[kept], whole.top_logprobs.token_ids[kept])
    assert (whole.top_logprobs.logprobs[:, 4:] == np.finfo(np.float32).min).all()
    logits, _ = references["A"].forward(PROMPT, whole.token_ids.tolist())
    for row, expected in enumerate(logits):
        distribution = log_distribution(expected, sampling)
        best = np.argsort(-distribution)[:4]
        assert whole.top_logprobs.token_ids[row, :4].tolist() == best.tolist()
        np.testing.assert_allclose(whole.top_logprobs.logprobs[row, :4], distribution[best], atol=1e-4)
    check(whole, PROMPT, sampling, {version: references["A"]})


async def test_load_counts_what_runs_and_what_waits(engine: VllmEngine) -> None:
    stream = engine.stream(PROMPT, long(n=20, max_tokens=100))
    await anext(stream)
    load = engine.load
    assert load.running + load.waiting == 20
    assert 1 <= load.running <= SLOTS
    await settled(lambda: engine.load.tokens > load.tokens)
    assert 0 < engine.load.kv_cache_usage <= 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.load.kv_cache_usage == 0


async def test_metrics_of_vllm_are_in_the_registry(engine: VllmEngine) -> None:
    before = vllm_metrics()["vllm:generation_tokens_total"]
    tokens = engine.load.tokens
    samples = await engine.generate(PROMPT, params(n=3))
    sampled = sum(len(sample.token_ids) for sample in samples)
    await settled(lambda: engine.load.tokens == tokens + sampled)
    assert vllm_metrics()["vllm:generation_tokens_total"] == before + sampled


async def test_seeds_take_all_64_bits(engine: VllmEngine) -> None:
    wrapped = await engine.generate(PROMPT, params(n=2, seed=2**64 - 1))
    (zero,) = await engine.generate(PROMPT, params(seed=0))
    assert wrapped[1].token_ids.tolist() == zero.token_ids.tolist()


async def test_ctrl_c_does_not_reach_the_child(engine: VllmEngine) -> None:
    for pid in children():
        os.kill(pid, signal.SIGINT)
    assert len(await engine.generate(PROMPT, params(n=8))) == 8
