"""What is particular to the vLLM engine; tests/contract holds what all engines share."""

import asyncio
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from safetensors.numpy import load_file, save_file

from services.generation.engines.base import EngineOptions, EngineSampling, UpdatePolicy
from services.generation.engines.vllm import launch
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.output import plausible, to_layout
from services.generation.engines.vllm.rows import unpack_rows
from services.generation.engines.vllm.settings import VllmSettings
from services.generation.engines.vllm.updates import Updates
from shared.errors import (
    CorruptDataError,
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from shared.trajectory import (
    Completion,
    FinishReason,
    RouterExport,
    RouterLayout,
    RouterTrace,
    ScoreFunction,
    VersionSpan,
    spans_between,
    spans_of,
    versions_of,
)
from tests.support.engines import publish
from tests.support.models import EOS, SYMBOLS, save_model
from tests.support.reference import Reference, check, log_distribution

NEEDS_VLLM = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm"),
]

SLOTS = 4
PROMPT = [2, 9, 4, 21]
# Tied head, experts of a size that the kernels pad, dense layers around the routed one: what an update may forget.
CHANGES: dict[str, Any] = {"tie_word_embeddings": True, "moe_intermediate_size": 48, "decoder_sparse_step": 2}


# Starts an engine, and prints the process id of its child while it starts, or once it serves.
PARENT = """
import asyncio, pathlib, sys
from tests.contract.generation.engines.test_vllm_engine import children, new_engine

async def main(folder, moment):
    starting = asyncio.create_task(new_engine(pathlib.Path(folder)).start())
    if moment == "serving":
        await starting
    while not children():
        await asyncio.sleep(0.1)
    print(*children(), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_endless(root / name, seed) for seed, name in enumerate("AB")}


def save_endless(folder: Path, seed: int) -> Path:
    """A model whose logit of <eos> is always 0: never among the two highest of 24, whatever the others are."""
    file = save_model(folder, seed=seed, **CHANGES) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][EOS] = 0
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {name: Reference(folder) for name, folder in folders.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: dict[str, Path]) -> AsyncIterator[VllmEngine]:
    """Serves A or B; a test publishes what it needs."""
    engine = new_engine(folders["A"])
    await engine.start()
    yield engine
    await engine.close()


def follow(monkeypatch: pytest.MonkeyPatch, engine: VllmEngine, policy: UpdatePolicy) -> None:
    """Another policy, without half a minute for another engine."""
    monkeypatch.setattr(engine, "_options", replace(engine._options, update_policy=policy))


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
        if stat[0] != "Z" and not any(other in args for other in ("resource_tracker", "redis-server", "ps -ww"))
    }


@pytest.mark.parametrize("module", ["base", "torch_engine", "vllm", "vllm_launch", "vllm_output"])
def test_importing_an_engine_does_not_import_vllm(module: str) -> None:
    code = f"import sys, services.generation.engines.{module}; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_is_imported_after_its_environment_is_set() -> None:
    imported = "services.generation.service, services.generation.engines.vllm.engine"
    code = f"import sys, {imported}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # how Python marks a module that cannot be imported
    with pytest.raises(MissingDependencyError, match="make install ENGINE=vllm"):
        new_engine(tmp_path)


def test_versions_of_a_piece() -> None:
    starts = [("3", 0), ("4", 5), ("6", 7)]
    assert spans_between(starts, 0, 9) == (VersionSpan(3, 5), VersionSpan(4, 2), VersionSpan(6, 2))
    assert spans_between(starts, 4, 6) == (VersionSpan(3, 1), VersionSpan(4, 1))
    assert spans_between(starts, 7, 8) == (VersionSpan(6, 1),)
    assert spans_between(starts[:1], 2, 2) == ()


@pytest.mark.parametrize(("rows", "tokens"), [(None, 1), (np.zeros((2, 1, 6), np.uint8), 3)])
def test_rows_that_do_not_match_the_tokens_are_refused(rows: np.ndarray | None, tokens: int) -> None:
    with pytest.raises(PreconditionError, match=f"{tokens} tokens"):
        unpack_rows(rows, RouterLayout((0,), 8, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, tokens)


def test_a_sample_that_never_began_has_a_trace_of_no_rows() -> None:
    trace = unpack_rows(None, RouterLayout((0, 2), 8, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, 0)
    assert trace.expert_ids.shape == trace.scores.shape == (0, 2, 2)


def test_a_score_function_that_nobody_defined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="sqrtsoftplus"):
        to_layout(tmp_path, ([0], 8, 2, "sqrtsoftplus"))


def test_expert_ids_above_a_byte_survive() -> None:
    scores = np.array([[[-0.5, -2.0]]], np.float16)
    rows = np.concatenate([np.array([[[300, 7]]], np.uint16), scores.view(np.uint16)], axis=-1).view(np.uint8)
    trace = unpack_rows(rows, RouterLayout((0,), 512, 2, ScoreFunction.SOFTMAX), RouterExport.TOPK, 1)
    assert trace.expert_ids.tolist() == [[[300, 7]]]
    assert trace.expert_ids.dtype == np.uint16
    np.testing.assert_array_equal(trace.scores, scores)


def test_rows_that_were_never_written_are_not_plausible() -> None:
    layout = RouterLayout((0,), 8, 2, ScoreFunction.SOFTMAX)
    scores = np.full((1, 1, 2), -1.0, np.float16)
    assert plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), scores))
    assert plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), None))
    assert not plausible(RouterTrace(layout, np.zeros((1, 1, 2), np.uint8), scores))
    assert not plausible(RouterTrace(layout, np.zeros((1, 1, 2), np.uint8), None))
    assert not plausible(RouterTrace(layout, np.array([[[3, 1]]], np.uint8), scores * np.nan))


@pytest.mark.parametrize(
    "settings",
    [
        {"data_parallel_size": 2},
        {"speculative_tokens": 3},
        {"model_runner": "v2"},
        {"enable_chunked_prefill": True},
        {"enable_expert_parallel": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_the_capture_does_not_follow_is_refused_by_name(settings: dict[str, Any]) -> None:
    VllmSettings().refuse_inexact(on_cpu=True)
    with pytest.raises(PreconditionError, match=rf"generation\.vllm\.{next(iter(settings))} is .*set it to"):
        VllmSettings(**settings).refuse_inexact(on_cpu=True)


def test_some_are_for_gpus_only() -> None:
    VllmSettings(enable_chunked_prefill=True, enable_expert_parallel=True, model_runner="v2").refuse_inexact(
        on_cpu=False
    )


class TestEngine:
    pytestmark = NEEDS_VLLM

    async def test_updates_leave_nothing_stale(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
    ) -> None:
        """A tied head and padded experts: both keep packed copies that vLLM's own reload forgets on CPU."""
        for name in "ABAB":
            version = await publish(engine, folders[name])
            for sample in await engine.generate(PROMPT, params(n=4)):
                assert sample.versions == (VersionSpan(version, len(sample.token_ids)),)
                check(sample, PROMPT, params(), {version: references[name]})

    async def test_preempted_samples_keep_their_rows(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
    ) -> None:
        version = await publish(engine, folders["A"])
        sampling = long(n=4)
        samples = await engine.generate(PROMPT, sampling)
        blocks = sum(1 + (len(sample.token_ids) > 128) for sample in samples)
        assert blocks == 8, "each takes two of the four blocks, so some were preempted"
        for sample in samples:
            check(sample, PROMPT, sampling, {version: references["A"]})
        assert engine.load.preemptions > 0

    async def test_an_update_preempts_nobody(self, engine: VllmEngine, folders: dict[str, Path]) -> None:
        """It throws KV caches away, but not for want of memory."""
        preemptions = engine.load.preemptions
        stream = engine.stream(PROMPT, long(n=2, max_tokens=100))
        await anext(stream)
        version = await publish(engine, folders["A"])
        assert version in {span.version async for piece in stream for span in piece.versions}
        assert engine.load.preemptions == preemptions

    async def test_waiting_for_running_samples_counts_preempted_ones_in(
        self,
        engine: VllmEngine,
        folders: dict[str, Path],
        references: dict[str, Reference],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        old = await publish(engine, folders["A"])
        follow(monkeypatch, engine, UpdatePolicy.WAIT)
        preemptions = engine.load.preemptions
        sampling = long(n=4)
        running = asyncio.create_task(engine.generate(PROMPT, sampling))
        await settled(lambda: engine.load.preemptions > preemptions)
        queued = asyncio.create_task(engine.generate(PROMPT, params(n=SLOTS)))
        await settled(lambda: engine.load.waiting > 0)
        new = await publish(engine, folders["B"])
        for sample in await running:
            check(sample, PROMPT, sampling, {old: references["A"]})
        begun = [sample.versions[0].version for sample in await queued]
        assert new in begun
        for sample in await queued:
            assert len(sample.versions) == 1, "of a sample that has begun, each token is from one version"
            check(sample, PROMPT, params(), {old: references["A"], new: references["B"]})

    async def test_an_aborting_update_ends_samples_with_the_rows_they_have(
        self,
        engine: VllmEngine,
        folders: dict[str, Path],
        references: dict[str, Reference],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        old = await publish(engine, folders["A"])
        follow(monkeypatch, engine, UpdatePolicy.ABORT)
        preemptions = engine.load.preemptions
        sampling = long(n=10)
        whole = asyncio.create_task(engine.generate(PROMPT, sampling))
        await settled(lambda: engine.load.preemptions > preemptions)
        streamed = asyncio.create_task(collect(engine.stream(PROMPT, sampling)))
        await settled(lambda: engine.load.waiting >= 10)
        new = await publish(engine, folders["B"])
        samples = await whole
        aborted = [sample for sample in samples if sample.finish_reason == FinishReason.ABORTED]
        assert {len(sample.token_ids) > 0 for sample in aborted} == {True, False}
        for sample in samples:
            if len(sample.token_ids):
                check(sample, PROMPT, sampling, {old: references["A"]})
            else:
                assert sample.router_trace is not None
                assert sample.router_trace.expert_ids.shape[0] == len(sample.logprobs) == len(sample.versions) == 0
        for sample in await streamed:
            assert sample.finish_reason == FinishReason.ABORTED
            assert sample.router_trace is not None
            assert len(sample.router_trace.expert_ids) == 0
        (after,) = await engine.generate(PROMPT, params())
        check(after, PROMPT, params(), {new: references["B"]})

    async def test_a_sample_waiting_for_an_update_can_be_cancelled(
        self, engine: VllmEngine, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        follow(monkeypatch, engine, UpdatePolicy.WAIT)
        running = asyncio.create_task(engine.generate(PROMPT, long(n=SLOTS, max_tokens=150)))
        await settled(lambda: engine.load.running == SLOTS)
        update = asyncio.create_task(publish(engine, folders["A"]))
        held = asyncio.create_task(engine.generate(PROMPT, params(n=2)))
        await settled(lambda: engine.load.waiting == 2)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert engine.load.waiting == 0
        await update
        assert len(await running) == SLOTS

    async def test_a_stop_string_ends_a_preempted_sample_with_all_its_rows(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
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

    async def test_stop_strings_need_a_tokenizer(self, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "_tokenizer", None)
        with pytest.raises(InvalidInputError, match=r"tokenizer\.json"):
            await engine.generate(PROMPT, params(stop=("1",)))

    async def test_merged_pieces_keep_the_most_likely_tokens(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
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

    async def test_a_slow_reader_of_a_stream_sees_which_version_each_token_is_from(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
    ) -> None:
        first = await publish(engine, folders["A"])
        pieces: list[Completion] = []
        async for piece in engine.stream(PROMPT, long()):
            if len(pieces) == 3:
                await publish(engine, folders["B"])  # pieces pile up meanwhile and are merged
            pieces.append(piece)
        versions = np.concatenate([versions_of(piece.versions) for piece in pieces])
        assert versions.tolist() == sorted(versions.tolist())
        assert set(versions.tolist()) == {first, first + 1}
        whole = Completion(
            index=0,
            token_ids=np.concatenate([piece.token_ids for piece in pieces]),
            logprobs=np.concatenate([piece.logprobs for piece in pieces]),
            versions=spans_of(versions),
            finish_reason=pieces[-1].finish_reason,
            router_trace=pieces[-1].router_trace,
        )
        by_version = {first: references["A"], first + 1: references["B"]}
        check(whole, PROMPT, long(), by_version)

    async def test_an_update_outlives_its_caller(self, engine: VllmEngine, folders: dict[str, Path]) -> None:
        version = engine.version
        stream = engine.stream(PROMPT, long())
        await anext(stream)
        update = asyncio.create_task(publish(engine, folders["B"]))
        await asyncio.sleep(0)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        seen = {span.version async for piece in stream for span in piece.versions}
        assert seen == {version, version + 1}

    async def test_a_cut_off_update_is_refused(
        self, engine: VllmEngine, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        whole = (folders["B"] / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        version = engine.version
        with pytest.raises(CorruptDataError, match=r"model\.safetensors"):
            await publish(engine, tmp_path)
        assert await engine.healthy()
        assert engine.version == version

    async def test_files_may_be_deleted_once_an_update_has_begun(
        self,
        engine: VllmEngine,
        folders: dict[str, Path],
        references: dict[str, Reference],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Under WAIT minutes may pass before they are loaded, and a learner keeps a few versions only."""
        old = await publish(engine, folders["A"])
        file = tmp_path / "model.safetensors"
        check_weights, pause = Updates.check, engine._llm.engine_core.pause_scheduler_async

        async def check_and_lose(*arguments: Any) -> None:
            await check_weights(*arguments)
            file.unlink()

        async def lose_and_pause(**arguments: Any) -> None:
            file.unlink()
            await pause(**arguments)

        shutil.copy(folders["B"] / file.name, file)
        with monkeypatch.context() as patched:
            patched.setattr(Updates, "check", check_and_lose)
            with pytest.raises(NotFoundError, match=r"model\.safetensors"):
                await publish(engine, tmp_path)
        for sample in await engine.generate(PROMPT, params(n=2)):
            check(sample, PROMPT, params(), {old: references["A"]})

        shutil.copy(folders["B"] / file.name, file)
        monkeypatch.setattr(engine._llm.engine_core, "pause_scheduler_async", lose_and_pause)
        new = await publish(engine, tmp_path)
        for sample in await engine.generate(PROMPT, params(n=2)):
            check(sample, PROMPT, params(), {new: references["B"]})

    async def test_load_counts_what_runs_and_what_waits(self, engine: VllmEngine) -> None:
        stream = engine.stream(PROMPT, long(n=20, max_tokens=100))
        await anext(stream)
        load = engine.load
        assert load.running + load.waiting == 20
        assert 1 <= load.running <= SLOTS
        await settled(lambda: engine.load.tokens > load.tokens)
        assert 0 < engine.load.kv_cache_usage <= 1
        await stream.aclose()  # type: ignore[attr-defined]
        assert engine.load.kv_cache_usage == 0

    async def test_metrics_of_vllm_are_in_the_registry(self, engine: VllmEngine) -> None:
        before = vllm_metrics()["vllm:generation_tokens_total"]
        tokens = engine.load.tokens
        samples = await engine.generate(PROMPT, params(n=3))
        sampled = sum(len(sample.token_ids) for sample in samples)
        await settled(lambda: engine.load.tokens == tokens + sampled)
        assert vllm_metrics()["vllm:generation_tokens_total"] == before + sampled

    async def test_seeds_take_all_64_bits(self, engine: VllmEngine) -> None:
        wrapped = await engine.generate(PROMPT, params(n=2, seed=2**64 - 1))
        (zero,) = await engine.generate(PROMPT, params(seed=0))
        assert wrapped[1].token_ids.tolist() == zero.token_ids.tolist()

    async def test_ctrl_c_does_not_reach_the_child(self, engine: VllmEngine) -> None:
        for pid in children():
            os.kill(pid, signal.SIGINT)
        assert len(await engine.generate(PROMPT, params(n=8))) == 8


class TestShards:
    pytestmark = NEEDS_VLLM

    async def test_two_processes_that_share_each_layer_are_exact(self, tmp_path: Path) -> None:
        # A vocabulary that leaves each process a part of it.
        folders = [save_model(tmp_path / name, seed=seed, vocab_size=128) for seed, name in enumerate("AB")]
        before = children()
        engine = new_engine(folders[0], tensor_parallel_size=2)
        await engine.start()
        await publish(engine, folders[1])
        versions = {0: Reference(folders[0]), 1: Reference(folders[1])}
        for sample in await engine.generate(PROMPT, params(n=3)):
            check(sample, PROMPT, params(), versions)
        await engine.close()
        assert children() == before


class TestFailures:
    pytestmark = NEEDS_VLLM

    async def test_a_model_without_an_end_is_refused(self, tmp_path: Path) -> None:
        engine = new_engine(save_model(tmp_path, eos_token_id=None))
        with pytest.raises(PreconditionError, match="eos_token_id"):
            await engine.start()
        await engine.close()

    async def test_sizes_that_the_kernels_do_not_know_are_named(self, tmp_path: Path) -> None:
        before = children()
        engine = new_engine(save_model(tmp_path, head_dim=24))
        with pytest.raises(PreconditionError, match="head_dim"):
            await engine.start()
        assert not await engine.healthy()
        assert children() == before

    async def test_taps_that_do_not_fire_are_noticed_at_the_start(
        self, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
    ) -> None:
        monkeypatch.setattr(launch, "WORKER", "tests.support.vllm_blind_worker.BlindWorker")
        before = children()
        engine = new_engine(folders["A"])
        with pytest.raises(PreconditionError, match=r"were not seen.*set generation\.vllm\.moe_backend to 'triton'"):
            await engine.start()
        assert not await engine.healthy()
        assert children() == before

    async def test_a_dead_child_fails_who_waits(self, folders: dict[str, Path]) -> None:
        before = children()
        engine = new_engine(folders["A"])
        await engine.start()
        stream = engine.stream(PROMPT, long(n=8))
        await anext(stream)
        (child,) = children() - before
        os.kill(child, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="died"):
            async for _ in stream:
                pass
        assert not await engine.healthy()
        with pytest.raises(UnavailableError):
            await engine.generate(PROMPT, params())
        with pytest.raises(UnavailableError):
            await publish(engine, folders["B"])
        await engine.close()
        assert children() == before
        assert vllm_metrics() == {}

    async def test_a_child_that_stands_still_fails_an_update_and_is_killed(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = children()
        engine = new_engine(folders["A"])
        await engine.start()
        waiting = asyncio.create_task(engine.generate(PROMPT, long()))
        await settled(lambda: engine.load.running == 1)
        (child,) = children() - before
        monkeypatch.setattr(engine._child, "_patience", 0.5)
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(UnavailableError, match="answer_seconds"):
            await publish(engine, folders["B"])
        with pytest.raises(UnavailableError):
            await waiting
        assert not await engine.healthy()
        assert children() == before
        await engine.close()

    async def test_closing_ends_an_update_under_way(self, folders: dict[str, Path]) -> None:
        before = children()
        engine = new_engine(folders["A"])
        await engine.start()
        (child,) = children() - before
        os.kill(child, signal.SIGSTOP)
        update = asyncio.create_task(publish(engine, folders["B"]))
        await settled(engine._updating.locked)
        await engine.close()
        with pytest.raises(UnavailableError):
            await update
        assert children() == before

    @pytest.mark.parametrize("moment", ["starting", "serving"])
    async def test_the_child_dies_with_a_killed_parent(self, folders: dict[str, Path], moment: str) -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, str(folders["A"]), moment, stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        (child,) = map(int, (await parent.stdout.readline()).split())
        watch = os.pidfd_open(child)
        parent.kill()
        await parent.wait()
        ended, _, _ = await asyncio.to_thread(select.select, [watch], [], [], 120)
        os.close(watch)
        assert ended
