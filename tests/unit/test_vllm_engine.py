"""What is particular to the vLLM engine; tests/contract holds what all engines share."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import load_file, save_file

from services.generation.engines import vllm_launch
from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.vllm import VllmEngine
from services.generation.engines.vllm_output import unpack_rows
from services.generation.engines.vllm_settings import VllmSettings
from shared.errors import CorruptDataError, MissingDependencyError, PreconditionError, UnavailableError
from shared.trajectory import (
    Completion,
    RouterLayout,
    ScoreFunction,
    VersionSpan,
    spans_between,
    spans_of,
    versions_of,
)
from tests.contract.reference import Reference, check
from tests.models import EOS, save_model

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
from tests.unit.test_vllm_engine import children, new_engine

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


def params(n: int = 1, max_tokens: int = 24, top_k: int = 0, seed: int | None = 1) -> EngineSampling:
    return EngineSampling(n, 1.0, 1.0, top_k, max_tokens, seed)


def new_engine(folder: Path) -> VllmEngine:
    # One MiB is four blocks of 128 tokens and vLLM's null block: two whole sequences.
    return VllmEngine(folder, EngineOptions(max_num_seqs=SLOTS), VllmSettings(kv_cache_bytes=1 << 20))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_endless(root / name, seed) for seed, name in enumerate("AB")}


def save_endless(folder: Path, seed: int) -> Path:
    """A model whose logit of <eos> is always about 0: hardly ever among the four highest of 24."""
    file = save_model(folder, seed=seed, **CHANGES) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][EOS] *= 0.05
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


async def publish(engine: VllmEngine, folder: Path) -> int:
    version = engine.version + 1
    await engine.update_weights(version, [folder / "model.safetensors"])
    return version


def children() -> set[int]:
    """This process's children that run, but for the standard library's own helper."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    )
    rows = (line.split(None, 2) for line in listed.stdout.splitlines())
    return {
        int(pid)
        for pid, stat, args in rows
        if stat[0] != "Z" and "resource_tracker" not in args and "ps -ww" not in args
    }


@pytest.mark.parametrize("module", ["base", "torch_engine", "vllm", "vllm_launch", "vllm_output"])
def test_importing_an_engine_does_not_import_vllm(module: str) -> None:
    code = f"import sys, services.generation.engines.{module}; sys.exit('vllm' in sys.modules)"
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


@pytest.mark.parametrize(("rows", "tokens"), [(None, 1), (np.zeros((2, 1, 4), np.uint16), 3)])
def test_rows_that_do_not_match_the_tokens_are_refused(rows: np.ndarray | None, tokens: int) -> None:
    with pytest.raises(PreconditionError, match=f"for {tokens} tokens"):
        unpack_rows(rows, RouterLayout((0,), 8, 2, ScoreFunction.SOFTMAX), tokens)


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm")
def test_a_score_function_that_nobody_defined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="sqrtsoftplus"):
        new_engine(tmp_path)._layout([0], 8, 2, "sqrtsoftplus")


def test_expert_ids_above_a_byte_survive() -> None:
    scores = np.array([[[-0.5, -2.0]]], np.float16)
    rows = np.concatenate([np.array([[[300, 7]]], np.uint16), scores.view(np.uint16)], axis=-1)
    trace = unpack_rows(rows, RouterLayout((0,), 512, 2, ScoreFunction.SOFTMAX), 1)
    assert trace.expert_ids.tolist() == [[[300, 7]]]
    assert trace.expert_ids.dtype == np.uint16
    np.testing.assert_array_equal(trace.log_scores, scores)


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
        sampling = params(n=4, max_tokens=200, top_k=4, seed=5)
        samples = await engine.generate(PROMPT, sampling)
        blocks = sum(1 + (len(sample.token_ids) > 128) for sample in samples)
        assert blocks > 6, "three of four samples take two of the four blocks, so some were preempted"
        for sample in samples:
            check(sample, PROMPT, sampling, {version: references["A"]})

    async def test_a_slow_reader_of_a_stream_sees_which_version_each_token_is_from(
        self, engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
    ) -> None:
        first = await publish(engine, folders["A"])
        pieces: list[Completion] = []
        async for piece in engine.stream(PROMPT, params(max_tokens=200, top_k=4, seed=5)):
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
        check(whole, PROMPT, params(top_k=4), by_version)

    async def test_an_update_outlives_its_caller(self, engine: VllmEngine, folders: dict[str, Path]) -> None:
        version = engine.version
        stream = engine.stream(PROMPT, params(max_tokens=200, top_k=4, seed=5))
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

    async def test_load_counts_what_runs_and_what_waits(self, engine: VllmEngine) -> None:
        stream = engine.stream(PROMPT, params(n=20, max_tokens=100))
        await anext(stream)
        load = engine.load
        assert load.running + load.waiting == 20
        assert 1 <= load.running <= SLOTS
        await stream.aclose()  # type: ignore[attr-defined]

    async def test_seeds_take_all_64_bits(self, engine: VllmEngine) -> None:
        wrapped = await engine.generate(PROMPT, params(n=2, seed=2**64 - 1))
        (zero,) = await engine.generate(PROMPT, params(seed=0))
        assert wrapped[1].token_ids.tolist() == zero.token_ids.tolist()

    async def test_ctrl_c_does_not_reach_the_child(self, engine: VllmEngine) -> None:
        for pid in children():
            os.kill(pid, signal.SIGINT)
        assert len(await engine.generate(PROMPT, params(n=8))) == 8


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
        monkeypatch.setattr(vllm_launch, "WORKER", "tests.unit.vllm_blind_seam.BlindWorker")
        before = children()
        engine = new_engine(folders["A"])
        with pytest.raises(PreconditionError, match="were not seen"):
            await engine.start()
        assert not await engine.healthy()
        assert children() == before

    async def test_a_dead_child_fails_who_waits(self, folders: dict[str, Path]) -> None:
        before = children()
        engine = new_engine(folders["A"])
        await engine.start()
        stream = engine.stream(PROMPT, params(n=8, max_tokens=200))
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
