"""What the learner survives: a disk that takes no writes, a Redis that forgot, and its own death at any moment."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from resource import RLIM_INFINITY
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.learner.checkpointing import checkpoint
from services.learner.data.batch import Group
from shared.errors import PreconditionError, UnavailableError
from shared.settings import StreamSettings
from shared.streams.keys import Stream
from shared.streams.run import FINISHED, PAUSED, Run
from shared.weights import published
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learner_process import STEPS, Process
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(load(model), groups=STEPS * GROUPS, samples=SAMPLES)


def refused(write: str) -> float:
    return REGISTRY.get_sample_value("routershift_learner_writes_refused_total", {"write": write}) or 0.0


@contextlib.contextmanager
def volume_missing(folder: Path) -> Iterator[None]:
    """Where the folder was nothing can be written, as root or not."""
    aside = folder.with_name("volume")
    if folder.exists():
        folder.rename(aside)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()
    yield
    folder.unlink()
    if aside.exists():
        aside.rename(folder)


async def progress_step(run: Run) -> int:
    return (await run.progress()).step or 0


@pytest.mark.parametrize(("place", "write"), [("checkpoints", "checkpoint"), ("weights", "weights")])
async def test_a_disk_that_comes_back_has_cost_nothing_and_nothing_was_trained_on_top(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], place: str, write: str
) -> None:
    settings = tables(tmp_path, model, steps=2)
    before = refused(write)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))

    async def refused_twice() -> bool:
        return refused(write) >= before + 2

    async with Learning(settings, run) as learning:
        with volume_missing(settings.run.path / place):
            await until(refused_twice)
            assert learning.trainer.step == 1
            assert (await run.ledger()).trained == 0
        await until(lambda: nothing_in_flight(run))
    assert set(checkpoint.trained_groups(settings.run.path / "checkpoints").values()) == {1, 2}
    newest = await run.newest_weights()
    assert newest is not None
    published.verify(settings.run.weights_root, newest)
    ledger = await run.ledger()
    assert (ledger.trained, ledger.balanced) == (2 * GROUPS * SAMPLES, True)


async def test_patience_with_a_disk_ends_and_the_same_groups_are_trained_again(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=1, checkpoints__disk_seconds=0.1)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    learning = Learning(settings, run)
    reason = r"checkpoint of step 1 not written to .*/checkpoints: .* \(errno \d+\); free space there, or point run\."
    with volume_missing(settings.run.path / "checkpoints"), pytest.raises(UnavailableError, match=reason):
        await asyncio.wait_for(learning.worker.run(learning.stop), 30)
    assert (await run.ledger()).trained == 0
    async with Learning(settings, run) as resumed:
        assert resumed.trainer.step == 0
        await until(lambda: nothing_in_flight(run))
    assert (await run.ledger()).trained == GROUPS * SAMPLES


async def test_a_learner_whose_checkpoints_are_missing_does_not_begin_anew(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=1)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(settings, run):
        await until(lambda: nothing_in_flight(run))
    (settings.run.path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(PreconditionError, match=r"8 trajectories of run learn were trained on, but .*/checkpoints has"):
        await Learning(settings, run).worker.start()


async def test_groups_that_redis_brings_back_are_not_trained_twice(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    """Groups of the last two steps and of the batch that is being collected; then those of an earlier process."""
    settings = tables(tmp_path, model, steps=5, checkpoints__every=2, checkpoints__keep=1)
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"max_staleness": 5})})
    scored = run.keys(Stream.SCORED)

    async def entries() -> list[Any]:
        found: Any = await redis.xrange(scored)
        return [fields for _, fields in found]

    async def bring_back(entries: list[Any]) -> None:
        for fields in entries:
            await redis.xadd(scored, fields)

    async def step_two() -> bool:
        return learning.trainer.step == 2 and not learning.consumer.held

    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
    first = await entries()
    async with Learning(settings, run) as learning:
        await until(step_two)
        await bring_back(first)
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[4:7])))
        second = (await entries())[-3:]

        async def step_three() -> bool:
            return learning.trainer.step == 3 and learning.consumer.held == 3

        await until(step_three)  # two groups wait for the next checkpoint, one for a second in its batch
        await bring_back(second)

        async def read() -> bool:
            return learning.consumer.held == 6

        await until(read)
        assert learning.trainer.step == 3
    assert len(await entries()) == 2  # the group in the batch, twice; the rest went with the last checkpoint
    async with Learning(settings, run) as learning:
        await bring_back([*first, *second[:2]])

        async def empty() -> bool:
            return (await run.backlog())[Stream.SCORED].entries == 2  # the group in the batch, twice

        await until(empty)
        assert learning.trainer.step == 3
    lists = checkpoint.trained_groups(settings.run.path / "checkpoints")
    assert lists == {f"{i:08d}/0": 1 + i // GROUPS for i in range(6)}


async def test_what_redis_forgot_is_said_again(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.learner.worker._REMIND_SECONDS", 0.1)
    settings = tables(tmp_path, model, steps=1)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(settings, run):
        await until(lambda: nothing_in_flight(run))
        await redis.delete(run.keys.weights, run.keys.progress)

        async def said() -> bool:
            newest = await run.newest_weights()
            return newest is not None and newest.version == 1 and (await run.progress()).phase == FINISHED

        await until(said)


async def test_weights_that_a_crash_damaged_are_published_again_at_the_start(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=1)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(settings, run):
        await until(lambda: nothing_in_flight(run))
    newest = await run.newest_weights()
    assert newest is not None
    (file,) = published.verify(settings.run.weights_root, newest)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    async with Learning(settings, run):
        assert file.read_bytes() == whole


async def test_a_run_that_was_paused_stays_paused_over_a_restart(run: Run, tmp_path: Path, model: Path) -> None:
    settings = tables(tmp_path, model)
    async with Learning(settings, run) as learning:
        await learning.worker.pause()
    async with Learning(settings, run) as learning:
        assert learning.worker.status().phase == PAUSED
        await learning.worker.resume()
        assert (await run.progress()).phase == learning.worker.status().phase != PAUSED


async def refused_a_write(process: Process) -> bool:
    return "File too large (errno 27); free space there" in process.log


async def test_a_learner_that_was_killed_and_had_no_space_reaches_the_state_of_one_that_was_not(
    request: pytest.FixtureRequest, redis_url: str, redis: Redis, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    runs, processes = {}, {}
    for name in ("whole", "killed"):
        runs[name] = Run(redis, f"{name}-{seed}", StreamSettings(consumer="upstream"))
        await runs[name].open()
        await put(runs[name], Stream.SCORED, *(message(g, i) for i, g in enumerate(groups)))
        processes[name] = Process(request, redis_url, tmp_path, model, f"{name}-{seed}")
        processes[name].start()
    killed = processes["killed"]
    for _ in range(2):
        killed.wait_for(len(killed.steps()) + moments.randint(1, 5))
        await asyncio.sleep(moments.uniform(0, 0.1))
        killed.end(signal.SIGKILL)
        killed.start()
    killed.limit_files(100_000)
    await until(partial(refused_a_write, killed), 120)
    killed.limit_files(RLIM_INFINITY)
    found = {}
    for name, run in runs.items():
        await until(partial(nothing_in_flight, run), 120)
        assert processes[name].end(signal.SIGTERM) == 0
        ledger = await run.ledger()
        assert (ledger.trained, ledger.dropped, ledger.dead) == (len(groups) * SAMPLES, {}, {}), seed
        found[name] = processes[name].state()
    assert found["whole"].keys() == found["killed"].keys(), seed
    assert [name for name, content in found["whole"].items() if found["killed"][name] != content] == [], seed
    assert any(name.startswith("checkpoints/trained/") for name in found["whole"])
    versions = {name.split("/")[1] for name in found["whole"] if name.startswith("weights/")}
    assert versions == {published.folder_name(step + 1) for step in range(STEPS)}
