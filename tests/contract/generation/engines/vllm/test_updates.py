"""New weights while vLLM samples: whose tokens they are, who waits, and what is left behind."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from routershift.trajectory import Completion, FinishReason, VersionSpan, spans_of, versions_of
from services.generation.engines.base import UpdatePolicy
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.updates import Updates
from shared.errors import CorruptDataError, NotFoundError
from tests.support.engines import publish
from tests.support.reference import Reference, check
from tests.support.vllm import NEEDS_VLLM, PROMPT, SLOTS, collect, long, params, settled

pytestmark = NEEDS_VLLM


def follow(monkeypatch: pytest.MonkeyPatch, engine: VllmEngine, policy: UpdatePolicy) -> None:
    """Another policy, without half a minute for another engine."""
    monkeypatch.setattr(engine, "_options", replace(engine._options, update_policy=policy))


async def test_updates_leave_nothing_stale(
    engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
) -> None:
    """A tied head and padded experts: both keep packed copies that vLLM's own reload forgets on CPU."""
    for name in "ABAB":
        version = await publish(engine, folders[name])
        for sample in await engine.generate(PROMPT, params(n=4)):
            assert sample.versions == (VersionSpan(version, len(sample.token_ids)),)
            check(sample, PROMPT, params(), {version: references[name]})


async def test_an_update_preempts_nobody(engine: VllmEngine, folders: dict[str, Path]) -> None:
    """It throws KV caches away, but not for want of memory."""
    preemptions = engine.load.preemptions
    stream = engine.stream(PROMPT, long(n=2, max_tokens=100))
    await anext(stream)
    version = await publish(engine, folders["A"])
    assert version in {span.version async for piece in stream for span in piece.versions}
    assert engine.load.preemptions == preemptions


async def test_waiting_for_running_samples_counts_preempted_ones_in(
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
    engine: VllmEngine, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
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


async def test_a_slow_reader_of_a_stream_sees_which_version_each_token_is_from(
    engine: VllmEngine, folders: dict[str, Path], references: dict[str, Reference]
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


async def test_an_update_outlives_its_caller(engine: VllmEngine, folders: dict[str, Path]) -> None:
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


async def test_a_cut_off_update_is_refused(engine: VllmEngine, folders: dict[str, Path], tmp_path: Path) -> None:
    whole = (folders["B"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    version = engine.version
    with pytest.raises(CorruptDataError, match=r"model\.safetensors"):
        await publish(engine, tmp_path)
    assert await engine.healthy()
    assert engine.version == version


async def test_files_may_be_deleted_once_an_update_has_begun(
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
