"""The learner where its stream is too small for the steps between two checkpoints, or for a step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.learner.data.batch import Group
from shared.errors import PreconditionError
from shared.settings import StreamSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, checkpoint_steps, nothing_in_flight, tables
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups

STEPS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(load(model), groups=STEPS * GROUPS, samples=SAMPLES)


def run_with_room_for(redis: Redis, settings: StreamSettings, run_id: str, messages: float) -> Run:
    """Messages are padded to 100 KB, so that the smallest bound of a stream holds none too many."""
    return Run(redis, run_id, settings.model_copy(update={"max_bytes": int(messages * 100_000)}))


@contextlib.asynccontextmanager
async def feeding(run: Run, groups: Sequence[Group]) -> AsyncIterator[None]:
    """Brings the groups onto the scored stream, in order, as there is room."""

    async def feed() -> None:
        for i, group in enumerate(groups):
            made = message(group, i)
            made.prompt.text = "x" * (100_000 - made.ByteSize())
            await put(run, Stream.SCORED, made)

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def early() -> float:
    return REGISTRY.get_sample_value("routershift_learner_checkpoints_early_total") or 0.0


async def test_trained_groups_that_fill_their_stream_bring_a_checkpoint(
    redis: Redis, stream_settings: StreamSettings, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    run = run_with_room_for(redis, stream_settings, "test-full-of-trained", GROUPS + 0.9)
    await run.open()
    settings, before = tables(tmp_path, model, steps=STEPS, checkpoints__every=100), early()
    patient = settings.run.model_copy(update={"max_staleness": STEPS})
    settings = settings.model_copy(update={"run": patient})
    async with Learning(settings, run), feeding(run, groups):
        await until(lambda: _trained(run, STEPS * GROUPS * SAMPLES))
        await until(lambda: nothing_in_flight(run))
    assert early() >= before + STEPS - 2
    assert checkpoint_steps(settings)[-1] == STEPS


async def test_a_step_that_does_not_fit_is_an_error_and_no_standstill(
    redis: Redis, stream_settings: StreamSettings, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    run = run_with_room_for(redis, stream_settings, "test-no-step", GROUPS - 0.5)
    await run.open()
    learning = Learning(tables(tmp_path, model), run)
    await learning.worker.start()
    async with feeding(run, groups):
        with pytest.raises(PreconditionError, match=rf"full with {GROUPS - 1} groups .*takes {GROUPS};"):
            await asyncio.wait_for(learning.worker.run(learning.stop), 30)


async def _trained(run: Run, trajectories: int) -> bool:
    return (await run.ledger()).trained == trajectories
