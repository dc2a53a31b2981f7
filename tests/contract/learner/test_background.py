"""Checkpoints that are written while the learner trains, on a real Redis."""

import asyncio
import contextlib
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.learner.checkpointing import checkpoint
from services.learner.checkpointing.snapshot import Snapshot
from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.errors import PreconditionError
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, checkpoint_steps, nothing_in_flight, tables
from tests.support.training import weights


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Set when the first checkpoint begins to be written; and to be set before any is."""
    began, go_on = threading.Event(), threading.Event()
    write = Snapshot.write

    def wait(snapshot: Snapshot, folder: Path) -> checkpoint.Files:
        began.set()
        assert go_on.wait(60)
        return write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", wait)
    yield began, go_on
    go_on.set()


def refused() -> float:
    return REGISTRY.get_sample_value("routershift_learner_writes_refused_total", {"write": "checkpoint"}) or 0.0


async def test_training_goes_on_beside_a_checkpoint_and_nothing_is_acknowledged_before_it_is_durable(
    redis: Redis,
    run: Run,
    tmp_path: Path,
    model: Path,
    groups: list[Group],
    held: tuple[threading.Event, threading.Event],
) -> None:
    settings, (began, go_on) = tables(tmp_path, model, steps=2), held
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    first: Any = await redis.xrange(run.keys(Stream.SCORED))
    async with Learning(settings, run) as learning:
        assert await asyncio.to_thread(began.wait, 60)
        for _, fields in first:  # delivered again while their checkpoint is on its way
            await redis.xadd(run.keys(Stream.SCORED), fields)
        await put(run, Stream.SCORED, *(message(g, i + GROUPS) for i, g in enumerate(groups[GROUPS : 2 * GROUPS])))

        async def trained_on() -> bool:
            newest = await run.newest_weights()
            return newest is not None and newest.version == 2

        await until(trained_on)
        assert (await run.ledger()).trained == 0
        assert checkpoint_steps(settings) == []
        learning.stop.set()
        go_on.set()
    ledger = await run.ledger()
    assert (ledger.trained, ledger.in_flight, ledger.balanced) == (2 * GROUPS * SAMPLES, 0, True)
    assert await redis.xlen(run.keys(Stream.SCORED)) == 0
    lists = checkpoint.trained_groups(settings.run.checkpoints_root)
    assert lists == {f"{i:08d}/0": 1 + i // GROUPS for i in range(2 * GROUPS)}
    for path in sorted(settings.run.checkpoints_root.glob("step-*")):
        trainer = Trainer(settings.learner, settings.run, settings.rollout)
        trainer.load(path)
        published = load_file(settings.run.weights_root / f"v{trainer.step:08d}/model.safetensors")
        found = weights(trainer, tmp_path / path.name)
        assert all(found[name].equal(tensor) for name, tensor in published.items()), path


async def test_a_learner_that_was_replaced_in_the_middle_of_a_write_leaves_no_checkpoint(
    redis: Redis,
    run: Run,
    tmp_path: Path,
    model: Path,
    groups: list[Group],
    held: tuple[threading.Event, threading.Event],
) -> None:
    settings, (began, go_on) = tables(tmp_path, model, steps=2), held
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    await run.lease.acquire("learner")
    learning = Learning(settings, run)
    working = asyncio.create_task(learning.worker.run(learning.stop))
    assert await asyncio.to_thread(began.wait, 60)
    await redis.hincrby(run.keys.fences, "learner", 1)
    go_on.set()
    with pytest.raises(PreconditionError, match="another process has become the learner"):
        await asyncio.wait_for(working, 60)
    assert checkpoint_steps(settings) == []
    assert (await run.ledger()).trained == 0


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What is larger cannot be written by this process, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("background", [True, False])
async def test_no_step_begins_while_the_disk_refuses_a_checkpoint(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], background: bool
) -> None:
    settings, before = tables(tmp_path, model, steps=2, checkpoints__background=background), refused()
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))

    async def refused_twice() -> bool:
        if refused() > before and not second:  # known before the groups of another step come
            second.append(put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[GROUPS : 2 * GROUPS]))))
            await second[0]
        return refused() >= before + 2

    second: list[Any] = []
    async with Learning(settings, run) as learning:
        # Weights and their moments do not fit; the weights that are published do.
        with largest_file(2 * (model / "model.safetensors").stat().st_size):
            await until(refused_twice)
            assert learning.trainer.step == 1
            assert (await run.ledger()).trained == 0
        await until(lambda: nothing_in_flight(run))
    assert checkpoint_steps(settings) == [1, 2]


async def test_a_write_that_fails_otherwise_ends_the_learner_in_words(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(snapshot: Snapshot, folder: Path) -> checkpoint.Files:
        raise RuntimeError("rank 1: out of memory")

    monkeypatch.setattr(Snapshot, "write", fail)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    learning = Learning(tables(tmp_path, model, steps=2), run)
    with pytest.raises(RuntimeError, match="rank 1: out of memory"):
        await asyncio.wait_for(learning.worker.run(learning.stop), 30)
    assert (await run.ledger()).trained == 0
