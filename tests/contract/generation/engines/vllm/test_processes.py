"""vLLM's own processes: two that share a model, one that dies, stands still or never starts."""

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from services.generation.engines.vllm import launch
from shared.errors import PreconditionError, UnavailableError
from tests.support.engines import publish
from tests.support.models import save_model
from tests.support.reference import Reference, check
from tests.support.vllm import NEEDS_VLLM, PROMPT, children, long, new_engine, params, settled, vllm_metrics

pytestmark = NEEDS_VLLM

# Starts an engine, and prints the process id of its child while it starts, or once it serves.
PARENT = """
import asyncio, pathlib, sys
from tests.support.vllm import children, new_engine

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


async def test_two_processes_that_share_each_layer_are_exact(tmp_path: Path) -> None:
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


async def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    engine = new_engine(save_model(tmp_path, eos_token_id=None))
    with pytest.raises(PreconditionError, match="eos_token_id"):
        await engine.start()
    await engine.close()


async def test_sizes_that_the_kernels_do_not_know_are_named(tmp_path: Path) -> None:
    before = children()
    engine = new_engine(save_model(tmp_path, head_dim=24))
    with pytest.raises(PreconditionError, match="head_dim"):
        await engine.start()
    assert not await engine.healthy()
    assert children() == before


async def test_taps_that_do_not_fire_are_noticed_at_the_start(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    monkeypatch.setattr(launch, "WORKER", "tests.support.vllm_blind_worker.BlindWorker")
    before = children()
    engine = new_engine(folders["A"])
    with pytest.raises(PreconditionError, match=r"were not seen.*set generation\.vllm\.moe_backend to 'triton'"):
        await engine.start()
    assert not await engine.healthy()
    assert children() == before


async def test_a_dead_child_fails_who_waits(folders: dict[str, Path]) -> None:
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
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
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


async def test_closing_ends_an_update_under_way(folders: dict[str, Path]) -> None:
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
async def test_the_child_dies_with_a_killed_parent(folders: dict[str, Path], moment: str) -> None:
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
