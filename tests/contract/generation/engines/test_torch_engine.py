"""The torch engine's own machinery: slots, ragged batches, families, refusals and its thread."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from routershift.trajectory import Completion, RouterExport
from services.generation.engines.base import EngineOptions, EngineSampling, Files
from services.generation.engines.torch import attention
from services.generation.engines.torch import batch as torch_batch
from services.generation.engines.torch import cache as torch_cache
from services.generation.engines.torch.batch import Batch, Sequence
from services.generation.engines.torch.engine import TorchEngine
from services.generation.engines.torch.model import load_folder
from services.generation.engines.torch.sampling import Drawn, Sampler
from shared.errors import PreconditionError, UnavailableError
from tests.support.models import MOE_KINDS, VOCABULARY, save_model
from tests.support.rollouts import routing

SAMPLING = EngineSampling(n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=24, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[TorchEngine]:
    engine = make(folder)
    await engine.start()
    yield engine
    await engine.close()


def make(folder: Path, **options: Any) -> TorchEngine:
    return TorchEngine(folder, EngineOptions(**{"max_num_seqs": 4} | options))


# Windows of all layers, and of all but the first. That of GPT-OSS is 8 tokens, in every other layer.
WINDOWS: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": 5},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
}


def busy(engine: TorchEngine) -> tuple[int, int]:
    return engine.load.running, engine.load.waiting


def sequence(prompt: list[int], max_tokens: int, seed: int = 0) -> Sequence:
    sampling = replace(SAMPLING, max_tokens=max_tokens)
    return Sequence(0, prompt, sampling, np.random.default_rng(seed).random(max_tokens))


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen3_dense", {}), *((kind, {}) for kind in MOE_KINDS if kind != "llama4"), *WINDOWS.items()],
)
@torch.inference_mode()
def test_a_ragged_batch_whose_members_come_and_go_equals_one_forward_each(
    tmp_path: Path, kind: str, changes: dict[str, Any], in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of 1 to 70 tokens in 4 slots, prefilled in several passes, ending at different steps."""
    monkeypatch.setattr(torch_batch, "_PREFILL_TOKENS", 64)
    monkeypatch.setattr(attention, "_SCORES", 1000)
    if in_blocks:
        monkeypatch.setattr(attention, "_BLOCK_ROWS", 3)
        monkeypatch.setattr(attention, "_CALL_POSITIONS", -1)
    model = save_model(tmp_path, kind, **changes)
    policy = load_folder(model, "cpu", RouterExport.FULL)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    rng = np.random.default_rng(0)
    waiting = [
        sequence(rng.integers(2, VOCABULARY, size=length).tolist(), max_tokens, seed)
        for seed, (length, max_tokens) in enumerate(
            [(1, 9), (30, 2), (30, 12), (5, 1), (70, 5), (2, 20), (33, 3), (8, 8), (40, 30), (3, 4)]
        )
    ]
    everyone = list(waiting)
    done: dict[Sequence, Completion] = {}
    batch = Batch(policy, 0, 4, frozenset())

    def sweep(advanced: list[Sequence]) -> None:
        done.update({one: batch.completion(one, 0) for one in advanced if one.finish_reason is not None})
        batch.sweep()

    while waiting or batch.running:
        first = len(batch.running)
        while waiting and batch.free:
            batch.running.append(waiting.pop(0))
        if first < len(batch.running):
            sweep(batch.begin(first))
        if batch.running:
            sweep(batch.step())
    for one in everyone:
        completion = done[one]
        assert len(completion.token_ids) == one.sampling.max_tokens
        first = len(one.prompt) - 1
        with routing(reference) as passes:
            logits = reference(torch.tensor([one.prompt + one.tokens[:-1]])).logits[0, first:]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-5)
        trace = completion.router_trace
        assert (trace is None) == (not passes)
        for routed in passes:
            assert trace is not None
            assert trace.logits is not None
            np.testing.assert_array_equal(trace.expert_ids, routed.expert_ids[first:])
            np.testing.assert_allclose(trace.scores, routed.log_scores[first:], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(trace.logits, routed.logits[first:], rtol=1e-3, atol=1e-4)


def draw_all(params: list[EngineSampling], uniforms: list[float], logits: list[list[float]]) -> Drawn:
    return Sampler(params, torch.device("cpu")).draw(torch.tensor(logits), uniforms)


def draw(logits: list[float], uniform: float, sampling: EngineSampling) -> tuple[int, float]:
    drawn = draw_all([sampling], [uniform], [logits])
    return drawn.tokens[0], float(drawn.logprobs[0])


class TestSampling:
    # Probabilities 0.1, 0.4, 0.2, 0.3.
    LOGITS = np.log([0.1, 0.4, 0.2, 0.3]).tolist()

    @pytest.mark.parametrize(
        ("uniform", "token"), [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.6, 2), (0.71, 3), (0.999, 3)]
    )
    def test_a_token_is_the_inverse_of_the_cumulative_distribution(self, uniform: float, token: int) -> None:
        drawn, logprob = draw(self.LOGITS, uniform, SAMPLING)
        assert drawn == token
        assert logprob == pytest.approx(self.LOGITS[token], abs=1e-6)

    @pytest.mark.parametrize(
        ("change", "kept"),
        [
            ({"top_k": 1}, {1: 1.0}),
            ({"top_k": 2}, {1: 4 / 7, 3: 3 / 7}),
            ({"top_k": 4}, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
            ({"top_p": 0.01}, {1: 1.0}),
            ({"top_p": 0.5}, {1: 4 / 7, 3: 3 / 7}),
            ({"top_p": 0.75}, {1: 4 / 9, 2: 2 / 9, 3: 3 / 9}),
            # Of the mass of the top 3 (0.9), 0.75 is reached by the first two (0.7 / 0.9).
            ({"top_k": 3, "top_p": 0.75}, {1: 4 / 7, 3: 3 / 7}),
            # Temperature comes first: at 0.5 probabilities are squared, 16 : 9 : 4 : 1.
            ({"temperature": 0.5, "top_p": 0.6}, {1: 16 / 25, 3: 9 / 25}),
            ({"min_p": 0.45}, {1: 4 / 9, 2: 2 / 9, 3: 3 / 9}),
            ({"min_p": 0.55}, {1: 4 / 7, 3: 3 / 7}),
            ({"min_p": 1.0}, {1: 1.0}),
            # At 0.5 the ratio to the most likely one is squared as well: 9/16, 4/16, 1/16.
            ({"temperature": 0.5, "min_p": 0.45}, {1: 16 / 25, 3: 9 / 25}),
            # Min-p comes before top-p: of the mass of the top 3 (0.9), 0.75 is reached by the first two (0.7 / 0.9).
            ({"min_p": 0.45, "top_p": 0.75}, {1: 4 / 7, 3: 3 / 7}),
            ({"temperature": 0.0, "top_k": 2, "top_p": 0.1, "min_p": 1.0}, {1: 0.4}),
        ],
    )
    def test_log_probs_are_those_of_what_remains(self, change: dict[str, Any], kept: dict[int, float]) -> None:
        sampling = replace(SAMPLING, **change)
        drawn = dict(draw(self.LOGITS, uniform, sampling) for uniform in np.linspace(0, 0.9999, 50))
        assert {token: np.exp(logprob) for token, logprob in drawn.items()} == pytest.approx(kept, abs=1e-5)

    def test_rows_do_not_disturb_each_other(self) -> None:
        params = [
            SAMPLING,
            replace(SAMPLING, top_k=1),
            replace(SAMPLING, temperature=0.0),
            replace(SAMPLING, top_p=0.5),
            replace(SAMPLING, min_p=0.45),
        ]
        drawn = draw_all(params, [0.05, 0.05, 0.05, 0.99, 0.05], [self.LOGITS] * 5)
        assert drawn.tokens == [0, 1, 1, 3, 1]
        assert np.exp(drawn.logprobs).tolist() == pytest.approx([0.1, 1.0, 0.4, 3 / 7, 4 / 9], abs=1e-5)
        assert drawn.top is None

    def test_the_most_likely_tokens_come_first_and_dropped_ones_are_lowest(self) -> None:
        params = [replace(SAMPLING, logprobs=3), replace(SAMPLING, top_k=2, logprobs=1), replace(SAMPLING, top_k=2)]
        drawn = draw_all(params, [0.05] * 3, [self.LOGITS] * 3)
        assert drawn.top is not None
        ids, logprobs = drawn.top
        assert ids[0].tolist() == [1, 3, 2]
        assert np.exp(logprobs[0]).tolist() == pytest.approx([0.4, 0.3, 0.2], abs=1e-5)
        assert ids[1, :2].tolist() == [1, 3]
        assert logprobs[1, 2] == np.finfo(np.float32).min

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_logits_that_are_no_numbers_are_an_error(self, bad: float, temperature: float) -> None:
        with pytest.raises(PreconditionError, match="not finite"):
            draw([*self.LOGITS, bad], 0.5, replace(SAMPLING, temperature=temperature, min_p=0.1))


async def test_more_samples_than_slots_wait_their_turn(engine: TorchEngine) -> None:
    stream = engine.stream([2, 3], replace(SAMPLING, n=10, max_tokens=200))
    await anext(stream)
    load = engine.load
    assert load.running <= 4
    assert load.running + load.waiting <= 10
    assert load.waiting > 0
    assert 0 < load.kv_cache_usage <= 1
    done = [piece async for piece in stream if piece.finish_reason is not None]
    assert sorted(piece.index for piece in done) == list(range(10))
    assert busy(engine) == (0, 0)


async def test_closing_fails_those_who_wait(engine: TorchEngine) -> None:
    stream = engine.stream([2, 3], replace(SAMPLING, n=50, max_tokens=250))
    await anext(stream)
    task = asyncio.create_task(engine.generate([2, 3], SAMPLING))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(UnavailableError, match="closed"):
        await task
    with pytest.raises(UnavailableError, match="closed"):
        async for _ in stream:
            pass
    with pytest.raises(UnavailableError, match="closed"):
        await engine.generate([2], SAMPLING)


async def test_logits_that_are_not_finite_kill_the_engine_and_say_so(engine: TorchEngine, folder: Path) -> None:
    """A version that computes such is refused before it serves; this is memory that goes bad after that."""
    running = asyncio.create_task(engine.generate([2, 3], replace(SAMPLING, n=100, max_tokens=250)))
    await asyncio.sleep(0)
    batch = engine._batch
    assert batch is not None
    with torch.no_grad():
        batch.policy.model.model.norm.weight.fill_(1e38)
    with pytest.raises(UnavailableError, match="not finite"):
        await running
    assert not await engine.healthy()
    assert busy(engine) == (0, 0)
    with pytest.raises(UnavailableError, match="not finite"):
        await engine.generate([2], SAMPLING)
    with pytest.raises(UnavailableError, match="not finite"):
        await engine.update_weights(1, Files([folder / "model.safetensors"]))


async def test_nothing_is_served_before_the_start(folder: Path) -> None:
    engine = make(folder)
    assert not await engine.healthy()
    with pytest.raises(PreconditionError, match="not started"):
        await engine.generate([2], SAMPLING)
    with pytest.raises(PreconditionError, match="not started"):
        _ = engine.info


async def test_a_model_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(PreconditionError, match="eos_token_id"):
        await make(tmp_path).start()


async def test_a_model_that_the_cache_does_not_fit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe sees a cache that loses keys: here, one that stores each token one position too early."""
    right = torch_cache.SlotCache.expect_tokens
    monkeypatch.setattr(torch_cache.SlotCache, "expect_tokens", lambda self, s, at, n: right(self, s, at - 1, n))
    with pytest.raises(PreconditionError, match="'qwen3_moe' does not run on the torch engine"):
        await make(folder).start()
