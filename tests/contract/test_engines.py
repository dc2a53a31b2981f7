"""What every engine behind `Engine` promises, against plain transformers in float32."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from services.generation.engines.base import Engine, EngineLoad, EngineSampling
from shared.errors import InvalidInputError, NotFoundError
from shared.trajectory import Completion, FinishReason, ScoreFunction, versions_of
from tests.contract.conftest import SLOTS
from tests.contract.reference import Reference, check
from tests.models import EOS, EXPERTS, LAYERS, MAX_MODEL_LEN, TOP_K, VOCABULARY, save_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTS = [[5], [3, 7, 11], [2, 9, 4, 21, 17, 6, 8], [10, 12] * 12]
PROMPT = PROMPTS[2]


def params(
    n: int = 1, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, max_tokens: int = 24, seed: int | None = 1
) -> EngineSampling:
    return EngineSampling(n, temperature, top_p, top_k, max_tokens, seed)


@asynccontextmanager
async def restored(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """Serves the weights in `folder` again afterwards, for the tests that come next."""
    try:
        yield
    finally:
        await publish(engine, folder)


async def publish(engine: Engine, folder: Path) -> int:
    version = engine.version + 1
    await engine.update_weights(version, [folder / "model.safetensors"])
    assert engine.version == version
    return version


async def collect(engine: Engine, prompt: list[int], sampling: EngineSampling) -> dict[int, list[Completion]]:
    """The pieces of a stream by sample."""
    pieces: dict[int, list[Completion]] = {index: [] for index in range(sampling.n)}
    async for piece in engine.stream(prompt, sampling):
        pieces[piece.index].append(piece)
    return pieces


async def test_info_describes_the_model(engine: Engine) -> None:
    info = engine.info
    assert (info.vocab_size, info.max_model_len, info.eos_token_id) == (VOCABULARY, MAX_MODEL_LEN, EOS)
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
    ],
    ids=lambda s: f"T{s.temperature}-k{s.top_k}-p{s.top_p}",
)
async def test_logprobs_and_routes_equal_transformers(
    engine: Engine, references: dict[str, Reference], sampling: EngineSampling
) -> None:
    groups = await asyncio.gather(*(engine.generate(prompt, sampling) for prompt in PROMPTS))
    for prompt, samples in zip(PROMPTS, groups, strict=True):
        assert [sample.index for sample in samples] == list(range(sampling.n))
        for sample in samples:
            assert sample.router_trace is not None
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


async def test_a_response_may_fill_the_model(engine: Engine, references: dict[str, Reference]) -> None:
    sampling = params(temperature=0.0, max_tokens=MAX_MODEL_LEN - len(PROMPT))
    (sample,) = await engine.generate(PROMPT, sampling)
    assert sample.finish_reason == FinishReason.LENGTH
    check(sample, PROMPT, sampling, {engine.version: references["A"]})


async def test_stream_pieces_make_up_the_completion(engine: Engine) -> None:
    sampling = params(n=3, temperature=2.0)
    whole = await engine.generate(PROMPT, sampling)
    streamed = await collect(engine, PROMPT, sampling)
    for sample, pieces in zip(whole, streamed.values(), strict=True):
        assert len(pieces) > 1
        assert all(piece.finish_reason is None and piece.router_trace is None for piece in pieces[:-1])
        assert pieces[-1].finish_reason == sample.finish_reason
        assert np.concatenate([piece.token_ids for piece in pieces]).tolist() == sample.token_ids.tolist()
        np.testing.assert_allclose(np.concatenate([p.logprobs for p in pieces]), sample.logprobs, atol=1e-5)
        spans = np.concatenate([versions_of(piece.versions) for piece in pieces])
        assert spans.tolist() == versions_of(sample.versions).tolist()
        trace, expected = pieces[-1].router_trace, sample.router_trace
        assert trace is not None
        assert expected is not None
        np.testing.assert_array_equal(trace.expert_ids, expected.expert_ids)
        np.testing.assert_allclose(trace.scores, expected.scores, rtol=2e-3)


async def test_closing_a_stream_frees_it_at_once(engine: Engine) -> None:
    stream = engine.stream(PROMPT, params(n=20, max_tokens=200))
    piece = await anext(stream)
    assert piece.finish_reason is None
    assert engine.load != EngineLoad(0, 0)
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.load == EngineLoad(0, 0)
    assert len(await engine.generate(PROMPT, params(n=20))) == 20


async def test_cancelling_a_task_frees_its_request_at_once(engine: Engine) -> None:
    task = asyncio.create_task(engine.generate(PROMPT, params(n=20, max_tokens=200)))
    first = engine.stream(PROMPT, params())
    await anext(first)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await first.aclose()  # type: ignore[attr-defined]
    assert engine.load == EngineLoad(0, 0)


async def test_updates_there_and_back(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    async with restored(engine, folders["A"]):
        for name in ("B", "A", "B"):
            version = await publish(engine, folders[name])
            for sampling in (params(n=2), params(temperature=0.0)):
                for sample in await engine.generate(PROMPT, sampling):
                    assert [span.version for span in sample.versions] == [version]
                    check(sample, PROMPT, sampling, {version: references[name]})


async def test_each_token_of_a_running_request_is_from_the_version_it_names(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    sampling = params(n=7, max_tokens=200)
    by_version = {engine.version: references["A"]}
    async with restored(engine, folders["A"]):
        running = asyncio.create_task(engine.generate(PROMPTS[3], sampling))
        clock = engine.stream(PROMPT, params(temperature=0.0, max_tokens=200))
        for name in ("B", "A"):
            for _ in range(5):
                await anext(clock, None)
            by_version[await publish(engine, folders[name])] = references[name]
        for _ in range(5):
            await anext(clock, None)
        await clock.aclose()  # type: ignore[attr-defined]
        samples = await running
    assert {span.version for sample in samples for span in sample.versions} == by_version.keys()
    assert max(len(sample.versions) for sample in samples) == len(by_version), "no sample lived through both updates"
    for sample in samples:
        check(sample, PROMPTS[3], sampling, by_version)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("wider", "lm_head.weight"),
        ("missing", "model.layers.1.mlp.experts.3.up_proj.weight"),
        ("extra", "model.layers.1.mlp.gate.bias"),
    ],
)
async def test_other_weights_are_refused_and_the_old_ones_serve_on(
    engine: Engine, folders: dict[str, Path], references: dict[str, Reference], tmp_path: Path, fault: str, named: str
) -> None:
    tensors = load_file(folders["B"] / "model.safetensors")
    if fault == "wider":
        tensors = load_file(save_model(tmp_path / "wider", hidden_size=128) / "model.safetensors")
    elif fault == "missing":
        del tensors[named]
    else:
        tensors[named] = tensors["model.norm.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    version = engine.version
    with pytest.raises(InvalidInputError, match=re.escape(named)):
        await engine.update_weights(version + 1, [tmp_path / "model.safetensors"])
    assert engine.version == version
    (sample,) = await engine.generate(PROMPT, params())
    check(sample, PROMPT, params(), {version: references["A"]})


async def test_a_dense_model_has_no_trace(
    dense_engine: Engine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    assert dense_engine.info.router_layout is None
    async with restored(dense_engine, folders["DENSE"]):
        for name in ("DENSE", "DENSE_B"):
            version = await publish(dense_engine, folders[name])
            for sample in await dense_engine.generate(PROMPT, params(n=3)):
                assert sample.router_trace is None
                check(sample, PROMPT, params(), {version: references[name]})


async def test_a_missing_model_is_named(make_engine: Callable[[Path], Engine], tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    for folder in (absent, empty):
        engine = make_engine(folder)
        with pytest.raises(NotFoundError, match=str(folder)):
            await engine.start()
        assert not await engine.healthy()
        await engine.close()


async def test_closing_twice_is_fine(make_engine: Callable[[Path], Engine], tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    await engine.close()
    await engine.close()
    assert not await engine.healthy()
