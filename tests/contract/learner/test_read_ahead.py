"""Groups that are read while the step before trains: with arrays in a payload store, and as if read afterwards."""

import time
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.learner.collector import Collector
from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.settings import StreamSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables
from tests.support.payloads import bulk, files, problems

SECONDS = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "payloads"


@pytest.fixture
async def by_reference(redis: Redis, run: Run, stream_settings: StreamSettings, folder: Path) -> Run:
    made = Run(redis, f"{run.keys.run}-ahead", stream_settings, bulk(folder))
    await made.open()
    return made


class Slow:
    """The first steps last until the next batch has as many groups as are wanted, or nothing more comes of it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        collector: Collector,
        wanted: int,
        waits: int = 1,
        seconds: float = SECONDS,
    ) -> None:
        self.collected: list[int] = []
        whole = Trainer.train_step

        def train_step(trainer: Trainer, *arguments: Any) -> Any:
            deadline = time.monotonic() + seconds
            while len(self.collected) < waits and len(collector) < wanted and time.monotonic() < deadline:
                time.sleep(0.01)
            self.collected.append(len(collector))
            return whole(trainer, *arguments)

        monkeypatch.setattr(Trainer, "train_step", train_step)


def collector_of(learning: Learning) -> Collector:
    return learning.worker._collector


def sent(groups: list[Group], count: int, version: int = 0) -> list[pb.TrajectoryGroup]:
    made = [message(group, i) for i, group in enumerate(groups[:count])]
    for each in made:
        for trajectory in each.trajectories:
            for span in trajectory.completion.versions:
                span.version = version
    return made


async def test_the_next_batch_is_read_and_decoded_while_a_step_trains(
    redis: Redis,
    by_reference: Run,
    folder: Path,
    tmp_path: Path,
    model: Path,
    groups: list[Group],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await put(by_reference, Stream.SCORED, *sent(groups, 2 * GROUPS))
    learning = Learning(tables(tmp_path, model, steps=2), by_reference)
    slow = Slow(monkeypatch, collector_of(learning), GROUPS)
    async with learning:
        await until(lambda: nothing_in_flight(by_reference), SECONDS)
    assert slow.collected[0] == GROUPS  # the last step reads nothing ahead
    assert (await by_reference.ledger()).trained == 2 * GROUPS * SAMPLES
    assert files(folder) == []
    assert await problems(redis, by_reference, folder) == {}


async def test_what_a_step_makes_too_old_leaves_the_batch_that_was_read_ahead(
    by_reference: Run, folder: Path, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """max_staleness is 1: groups of version 0 are good for steps 1 and 2, and read for step 3 while step 2 trains."""
    await put(by_reference, Stream.SCORED, *sent(groups, 3 * GROUPS))
    learning = Learning(tables(tmp_path, model, steps=4), by_reference)
    slow = Slow(monkeypatch, collector_of(learning), GROUPS, waits=2)
    async with learning:
        await until(lambda: nothing_in_flight(by_reference), SECONDS)
        assert learning.trainer.step == 2
    assert slow.collected == [GROUPS, GROUPS]
    ledger = await by_reference.ledger()
    assert (ledger.trained, ledger.dropped) == (2 * GROUPS * SAMPLES, {"stale": GROUPS * SAMPLES})
    assert await by_reference.tickets_held() == 0
    assert files(folder) == []


async def test_a_second_entry_of_a_group_that_trains_is_not_trained_on_again(
    redis: Redis,
    by_reference: Run,
    folder: Path,
    tmp_path: Path,
    model: Path,
    groups: list[Group],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a Redis that lost its last writes may bring it back."""
    await put(by_reference, Stream.SCORED, *sent(groups, 2 * GROUPS - 1))
    key = by_reference.keys(Stream.SCORED)
    found: Any = await redis.xrange(key, "-", "+", 1)
    await redis.xadd(key, found[0][1])
    await redis.hincrby(by_reference.keys.bytes, Stream.SCORED, len(found[0][1][b"p"]))
    learning = Learning(tables(tmp_path, model, steps=2), by_reference)
    slow = Slow(monkeypatch, collector_of(learning), GROUPS, seconds=3.0)
    async with learning:
        await until(lambda: _stream_has(redis, key, GROUPS - 1), SECONDS)
    assert slow.collected == [GROUPS - 1]
    ledger = await by_reference.ledger()
    assert (ledger.trained, ledger.stages["scored"]) == (GROUPS * SAMPLES, (GROUPS - 1) * SAMPLES)
    assert len(files(folder)) == GROUPS - 1


async def test_groups_of_a_stream_are_read_when_the_step_is_done(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(run, Stream.SCORED, *sent(groups, 2 * GROUPS))
    learning = Learning(tables(tmp_path, model, steps=2), run)
    slow = Slow(monkeypatch, collector_of(learning), GROUPS, waits=2, seconds=0.5)
    async with learning:
        await until(lambda: nothing_in_flight(run), SECONDS)
    assert slow.collected == [0, 0]


async def _stream_has(redis: Redis, key: str, entries: int) -> bool:
    return int(await redis.xlen(key)) == entries
