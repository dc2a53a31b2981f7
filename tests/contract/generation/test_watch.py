"""The watch over the engine: a wedge is told from work, and a dead engine ends the service."""

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.generation.engines.base import EngineInfo, EngineLoad, EngineOptions, EngineSampling, Files
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from services.generation.service import GenerationService
from services.generation.settings import GenerationSettings, Settings
from services.generation.watch import EngineWatch
from shared.errors import MissingDependencyError, UnavailableError
from shared.settings import RolloutSettings, RunSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.generation_worker import SAMPLES, admit, groups, metric
from tests.support.models import save_model


@dataclass
class Puppet:
    """An engine of which only the load is looked at: no real one stands still when it is told to."""

    load: EngineLoad = field(default=EngineLoad(0, 0))
    alive: bool = True
    info: EngineInfo | None = None
    version: int = 0

    async def healthy(self) -> bool:
        return self.alive


async def test_the_watch_tells_a_wedge_from_work() -> None:
    engine: Any = Puppet()
    watch = EngineWatch(engine, stall_seconds=30)
    for _ in range(50):
        watch.look(1.0)  # nothing to do
    for tokens in range(50):
        engine.load = EngineLoad(2, 1, tokens=tokens)
        watch.look(1.0)  # at work
    for _ in range(30):
        watch.look(1.0)
    with pytest.raises(UnavailableError, match=r"sampled nothing for 31 s, over generation\.stall_seconds = 30"):
        watch.look(1.0)


async def test_the_watch_shows_the_load() -> None:
    engine: Any = Puppet(EngineLoad(5, 3, kv_cache_usage=0.25, preemptions=2))
    watch = EngineWatch(engine, stall_seconds=30)
    preempted = metric("preemptions_total")
    watch.look(1.0)
    engine.load = EngineLoad(4, 1, kv_cache_usage=0.5, preemptions=7)
    watch.look(1.0)
    shown = [metric(name) for name in ("running_sequences", "waiting_sequences", "kv_cache_usage_ratio")]
    assert shown == [4, 1, 0.5]
    assert metric("preemptions_total") == preempted + 7


@pytest.mark.parametrize("sequences", [0, 2])
async def test_the_watch_waits_for_new_weights_that_are_put_in_place_and_for_no_others(sequences: int) -> None:
    engine: Any = Puppet(EngineLoad(sequences, 0))
    watch = EngineWatch(engine, stall_seconds=2)
    for second in range(9):
        engine.load = EngineLoad(sequences, 0, replacing=0.1 * second)
        watch.look(1.0)
    watch.look(2.0)
    with pytest.raises(UnavailableError, match="does nothing about the new weights"):
        watch.look(1.0)


async def test_the_watch_sees_a_dead_engine() -> None:
    engine: Any = Puppet(alive=False)
    with pytest.raises(UnavailableError, match="the engine has died"):
        await EngineWatch(engine, stall_seconds=30).run()


@pytest.mark.vllm
async def test_a_wedged_vllm_ends_the_service_and_its_prompts_are_kept(run: Run, tmp_path: Path) -> None:
    settings = Settings(
        run=RunSettings(id="wedged", folder=tmp_path, model=save_model(tmp_path / "model")),
        rollout=RolloutSettings(n=SAMPLES),
        generation=GenerationSettings(vllm={"kv_cache_bytes": 64 << 20}, stall_seconds=2),
    )
    try:
        service = GenerationService(settings)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    before = set(psutil.Process().children(recursive=True))
    await service.start(run)
    (child,) = (
        p for p in set(psutil.Process().children(recursive=True)) - before if "EngineCore" in " ".join(p.cmdline())
    )
    try:
        await admit(run, 1)
        async with asyncio.timeout(60):
            serving = asyncio.create_task(service.work(asyncio.Event()))
            await groups(run, 1)
            child.send_signal(signal.SIGSTOP)
            await admit(run, 1)
            with pytest.raises(UnavailableError, match="sampled nothing for"):
                await serving
    finally:
        await service.close()
    assert not child.is_running()
    assert (await run.backlog())[Stream.PROMPTS].entries == 1


@pytest.mark.vllm
@pytest.mark.parametrize("sequences", [0, 4])
async def test_a_vllm_that_is_stopped_in_an_update_ends_the_service(tmp_path: Path, sequences: int) -> None:
    folder = save_model(tmp_path / "model")
    try:
        engine = VllmEngine(folder, EngineOptions(max_num_seqs=8), VllmSettings(kv_cache_bytes=64 << 20))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    before = set(psutil.Process().children(recursive=True))
    await engine.start()
    (child,) = (
        p for p in set(psutil.Process().children(recursive=True)) - before if "EngineCore" in " ".join(p.cmdline())
    )
    sampling = EngineSampling(max(1, sequences), 1.0, 1.0, 0, 200, 1)
    running = asyncio.create_task(engine.generate([2, 3], sampling)) if sequences else None
    try:
        async with asyncio.timeout(60):
            child.send_signal(signal.SIGSTOP)
            update = asyncio.create_task(engine.update_weights(1, Files([folder / "model.safetensors"])))
            with pytest.raises(UnavailableError, match="does nothing about the new weights"):
                await EngineWatch(engine, stall_seconds=2).run()
            await engine.close()
            with pytest.raises(UnavailableError):
                await update
    finally:
        await engine.close()
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)
