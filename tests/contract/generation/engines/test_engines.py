"""What every engine behind `Engine` promises, against plain transformers in float32."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from routershift.routing.layout import ScoreFunction
from routershift.trajectory import FinishReason, versions_of
from services.generation.engines.base import Engine, EngineSampling
from shared.errors import NotFoundError
from tests.support.engines import PROMPT, PROMPTS, SLOTS, MakeEngine, busy, collect, params, whole
from tests.support.models import EOS, EXPERTS, LAYERS, MAX_MODEL_LEN, SYMBOLS, TOP_K, VOCABULARY
from tests.support.reference import Reference, check

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_info_describes_the_model(engine: Engine) -> None:
    info = engine.info
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (VOCABULARY, MAX_MODEL_LEN, (EOS,))
    layout = info.router_layout
    assert layout is not None
    assert layout.layer_ids == tuple(range(1, LAYERS)), "the first layer is dense"
    assert (layout.num_experts, layout.top_k) == (EXPERTS, TOP_K)
    assert layout.score_function == ScoreFunction.SOFTMAX
    assert await engine.healthy()


@pytest.mark.parametrize(
    "sampling",
    [
        params(n=3),
        params(temperature=0.0),
        params(temperature=0.0, top_k=3, top_p=0.5),
        params(n=3, temperature=0.7),
        params(n=3, top_k=4),
        params(n=3, top_p=0.6),
        params(n=3, temperature=1.3, top_k=6, top_p=0.8),
        params(n=3, min_p=0.3),
        params(n=3, temperature=1.3, min_p=0.05, top_k=6, top_p=0.8, logprobs=9),
        params(temperature=0.0, min_p=0.9, logprobs=VOCABULARY),
    ],
    ids=lambda s: f"T{s.temperature}-k{s.top_k}-p{s.top_p}-m{s.min_p}-l{s.logprobs}",
)
async def test_logprobs_and_routes_equal_transformers(
    engine: Engine, references: dict[str, Reference], sampling: EngineSampling
) -> None:
    groups = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in PROMPTS))
    for prompt, samples in zip(PROMPTS, groups, strict=True):
        assert [sample.index for sample in samples] == list(range(sampling.n))
        for sample in samples:
            assert sample.router_trace is not None
            assert sample.router_trace.log_scores is not None
            assert (sample.top_logprobs is not None) == (sampling.logprobs > 0)
            check(sample, prompt, sampling, {engine.version: references["A"]})


async def test_samples_of_a_prompt_differ(engine: Engine) -> None:
    samples = await engine.generate(PROMPT, params(n=6))
    assert len({tuple(sample.token_ids.tolist()) for sample in samples}) == 6


async def test_requests_without_a_seed_differ(engine: Engine) -> None:
    first, second = [await engine.generate(PROMPT, params(seed=None)) for _ in range(2)]
    assert first[0].token_ids.tolist() != second[0].token_ids.tolist()


async def test_a_seed_repeats_alone_and_in_any_batch(engine: Engine) -> None:
    crowd = [asyncio.create_task(engine.generate(prompt, params(n=5, seed=None))) for prompt in PROMPTS]
    together = await engine.generate(PROMPT, params(n=4, seed=40))
    await asyncio.gather(*crowd)
    for i, sample in enumerate(together):
        (alone,) = await engine.generate(PROMPT, params(seed=40 + i))
        assert alone.token_ids.tolist() == sample.token_ids.tolist()
        np.testing.assert_allclose(alone.logprobs, sample.logprobs, atol=1e-5)


async def test_more_prompt_tokens_than_a_step_takes(engine: Engine) -> None:
    """As where a weight update recomputes all that runs: no prompt may be cut, or its seed would draw twice."""
    length = MAX_MODEL_LEN - 2
    prompts = [[2 + (i + j) % (VOCABULARY - 2) for j in range(length)] for i in range(2 * SLOTS)]
    sampling = params(max_tokens=2, seed=7)
    alone = [(await engine.generate(prompt, sampling))[0] for prompt in prompts[:2]]
    together = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in prompts))
    assert [c.token_ids.tolist() for c in alone] == [c.token_ids.tolist() for (c,) in together[:2]]


async def test_tokens_follow_the_distribution(engine: Engine, references: dict[str, Reference]) -> None:
    """The first tokens of 1000 samples against transformers: chi-squared, 23 degrees of freedom, p about 1e-6."""
    sampling = params(n=1000, max_tokens=1, seed=11)
    tokens = [int(sample.token_ids[0]) for sample in await engine.generate(PROMPT, sampling)]
    logits, _ = references["A"].forward(PROMPT, [0])
    expected = np.exp(logits[0] - np.logaddexp.reduce(logits[0])) * sampling.n
    counts = np.bincount(tokens, minlength=VOCABULARY)
    assert ((counts - expected) ** 2 / expected).sum() < 72


async def test_finish_reasons(engine: Engine) -> None:
    sampling = params(n=24, temperature=2.0, max_tokens=24)
    samples = await engine.generate(PROMPT, sampling)
    assert {sample.finish_reason for sample in samples} == {FinishReason.STOP, FinishReason.LENGTH}
    for sample in samples:
        tokens = sample.token_ids.tolist()
        assert EOS not in tokens[:-1]
        if sample.finish_reason == FinishReason.STOP:
            assert tokens[-1] == EOS
        else:
            assert len(tokens) == sampling.max_tokens
            assert tokens[-1] != EOS


def text(tokens: list[int]) -> str:
    return "".join(SYMBOLS[token] for token in tokens if token != EOS)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_string_ends_a_sample_with_the_token_that_completes_it(
    engine: Engine, references: dict[str, Reference], streamed: bool
) -> None:
    sampling = params(n=12, temperature=2.0, seed=5)
    free = [sample.token_ids.tolist() for sample in await engine.generate(PROMPT, sampling)]
    # Of two tokens each, from the middle of two samples; and one that is never said.
    stop = (text(free[0][4:6]), text(free[1][7:9]), "no such text")
    sampling = replace(sampling, stop=stop)
    ended = 0
    for sample, tokens in zip(await whole(engine, PROMPT, sampling, streamed), free, strict=True):
        ends = (end for end in range(1, len(tokens) + 1) if any(string in text(tokens[:end]) for string in stop))
        end = next(ends, None)
        assert sample.token_ids.tolist() == tokens[:end]
        if end is not None:
            assert sample.finish_reason is FinishReason.STOP
            ended += 1
        check(sample, PROMPT, sampling, {engine.version: references["A"]})
    assert ended >= 2


async def test_stop_token_ids_end_a_sample_and_are_kept(engine: Engine, references: dict[str, Reference]) -> None:
    sampling = params(n=12)
    free = [sample.token_ids.tolist() for sample in await engine.generate(PROMPT, sampling)]
    ids = (free[0][5], free[1][3])
    sampling = replace(sampling, stop_token_ids=ids)
    for sample, tokens in zip(await engine.generate(PROMPT, sampling), free, strict=True):
        end = next((t + 1 for t, token in enumerate(tokens) if token in ids), None)
        assert sample.token_ids.tolist() == tokens[:end]
        if end is not None:
            assert sample.finish_reason is FinishReason.STOP
        check(sample, PROMPT, sampling, {engine.version: references["A"]})


async def test_the_load_counts_tokens(engine: Engine) -> None:
    before = engine.load.tokens
    samples = await engine.generate(PROMPT, params(n=5))
    assert engine.load.tokens - before == sum(len(sample.token_ids) for sample in samples)


async def test_a_response_may_fill_the_model(engine: Engine, references: dict[str, Reference]) -> None:
    sampling = params(temperature=0.0, max_tokens=MAX_MODEL_LEN - len(PROMPT))
    (sample,) = await engine.generate(PROMPT, sampling)
    assert sample.finish_reason == FinishReason.LENGTH
    check(sample, PROMPT, sampling, {engine.version: references["A"]})


async def test_stream_pieces_make_up_the_completion(engine: Engine) -> None:
    sampling = params(n=3, temperature=2.0, logprobs=4)
    samples = await engine.generate(PROMPT, sampling)
    streamed = await collect(engine, PROMPT, sampling)
    for sample, pieces in zip(samples, streamed.values(), strict=True):
        assert len(pieces) > 1
        assert all(piece.finish_reason is None and piece.router_trace is None for piece in pieces[:-1])
        assert pieces[-1].finish_reason == sample.finish_reason
        assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == sample.token_ids.tolist()
        np.testing.assert_allclose(np.concatenate([p.logprobs for p in pieces]), sample.logprobs, atol=1e-5)
        spans = np.concatenate([versions_of(piece.versions) for piece in pieces])
        assert spans.tolist() == versions_of(sample.versions).tolist()
        assert sample.top_logprobs is not None
        tops = [piece.top_logprobs for piece in pieces if piece.top_logprobs is not None]
        assert [len(top.token_ids) for top in tops] == [len(piece.token_ids) for piece in pieces]
        np.testing.assert_array_equal(np.concatenate([t.token_ids for t in tops]), sample.top_logprobs.token_ids)
        np.testing.assert_allclose(
            np.concatenate([top.logprobs for top in tops]), sample.top_logprobs.logprobs, atol=1e-5
        )
        trace, expected = pieces[-1].router_trace, sample.router_trace
        assert trace is not None
        assert expected is not None
        np.testing.assert_array_equal(trace.expert_ids, expected.expert_ids)
        np.testing.assert_allclose(trace.scores, expected.scores, rtol=2e-3)


async def test_closing_a_stream_frees_it_at_once(engine: Engine) -> None:
    stream = engine.stream(PROMPT, params(n=20, max_tokens=200))
    piece = await anext(stream)
    assert piece.finish_reason is None
    assert busy(engine) != (0, 0)
    await stream.aclose()  # type: ignore[attr-defined]
    assert busy(engine) == (0, 0)
    assert len(await engine.generate(PROMPT, params(n=20))) == 20


async def test_cancelling_a_task_frees_its_request_at_once(engine: Engine) -> None:
    task = asyncio.create_task(engine.generate(PROMPT, params(n=20, max_tokens=200)))
    first = engine.stream(PROMPT, params())
    await anext(first)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await first.aclose()  # type: ignore[attr-defined]
    assert busy(engine) == (0, 0)


async def test_a_missing_model_is_named(make_engine: MakeEngine, tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    for folder in (absent, empty):
        engine = make_engine(folder)
        with pytest.raises(NotFoundError, match=str(folder)):
            await engine.start()
        assert not await engine.healthy()
        await engine.close()


async def test_closing_twice_is_fine(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    await engine.close()
    await engine.close()
    assert not await engine.healthy()
