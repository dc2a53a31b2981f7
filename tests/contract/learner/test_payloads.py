"""The learner whose groups have their arrays in files: the same training, and nothing that dangles."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.learner.data.batch import Group
from shared.payloads.bulk import Bulk
from shared.payloads.folder import FolderStore
from shared.settings import StreamSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracking import records
from shared.tracking.samples import Samples
from tests.support.entries import SAMPLES, dead_letters, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables
from tests.support.payloads import FAST, FullStore, bulk, files, problems, swept


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "payloads"


@pytest.fixture
async def by_reference(redis: Redis, run: Run, stream_settings: StreamSettings, folder: Path) -> Run:
    made = Run(redis, f"{run.keys.run}-by-reference", stream_settings, bulk(folder))
    await made.open()
    return made


async def test_it_learns_the_same_from_files_as_from_the_stream(
    redis: Redis, run: Run, by_reference: Run, folder: Path, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    weights = []
    for each in (run, by_reference):
        settings = tables(tmp_path / each.keys.run, model, samples__groups=1)
        await put(each, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
        async with Learning(settings, each) as learning:
            await until(lambda each=each: nothing_in_flight(each))  # type: ignore[misc]
        await learning.worker.close()
        (file,) = (settings.run.weights_root).glob("*2/model.safetensors")
        weights.append(load_file(file))
        kept = Samples(settings.run.path)
        assert [kept.read(1, each.trajectory).tokens.ids.size > 0 for each in kept.summaries(1)] == [True] * SAMPLES
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert files(folder) == []
    assert await problems(redis, by_reference, folder) == {}


async def test_arrays_stay_until_the_checkpoint_that_contains_their_group(
    redis: Redis, by_reference: Run, folder: Path, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=2, checkpoints__every=2)
    await put(by_reference, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
    crashed = Learning(settings, by_reference)
    task = asyncio.create_task(crashed.worker.run(crashed.stop))

    async def one_step_done() -> bool:
        return len(records.read(settings.run.path / records.LEARNER)) >= 1

    await until(one_step_done)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(files(folder)) == 2 * GROUPS
    assert await swept(redis, by_reference) == 0
    async with Learning(settings, by_reference) as resumed:
        await until(lambda: nothing_in_flight(by_reference))
        assert resumed.trainer.step == 2
    ledger = await by_reference.ledger()
    assert (ledger.trained, ledger.dead, ledger.balanced) == (2 * GROUPS * SAMPLES, {}, True)
    assert files(folder) == []


async def test_lost_and_corrupt_arrays_are_dead_letters_that_give_their_tickets_back(
    redis: Redis, by_reference: Run, folder: Path, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    await put(by_reference, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: GROUPS + 3])))
    recorded: Any = await redis.hgetall(by_reference.keys.payloads)
    by_group = {group.decode(): folder / key.decode() for key, group in recorded.items()}
    vanished, torn, short, *_ = (by_group[name] for name in sorted(by_group))
    vanished.unlink()
    torn.write_bytes(bytes([torn.read_bytes()[0] ^ 1]) + torn.read_bytes()[1:])
    short.write_bytes(short.read_bytes()[:-1])
    async with Learning(tables(tmp_path, model, steps=1), by_reference):
        await until(lambda: nothing_in_flight(by_reference))
    ledger = await by_reference.ledger()
    assert ledger.dead == {"payload_corrupt": SAMPLES, "payload_lost": 2 * SAMPLES}
    assert (ledger.trained, ledger.balanced) == (GROUPS * SAMPLES, True)
    assert await by_reference.tickets_held() == 0
    details = " ".join(letter.detail for letter in await dead_letters(redis, by_reference))
    for text in ("it was deleted", "CRC-32", "ends at byte"):
        assert text in details
    assert set(files(folder)) == {torn.name, short.name}
    assert await problems(redis, by_reference, folder) == {}


async def test_a_full_store_brings_a_checkpoint_and_so_room(
    redis: Redis, by_reference: Run, folder: Path, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=2, checkpoints__every=100)
    await put(by_reference, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    full = FullStore(FolderStore(folder), errno.EDQUOT)
    starved = Run(redis, by_reference.keys.run, StreamSettings(block_seconds=0.05), Bulk(full, FAST))
    feeding = asyncio.create_task(put(starved, Stream.SCORED, *(message(g, 9) for g in groups[GROUPS : 2 * GROUPS])))
    async with Learning(settings, by_reference):

        async def trained() -> bool:
            return (await by_reference.ledger()).trained == GROUPS * SAMPLES

        await until(trained)
        full.room = True
        await feeding
        await until(lambda: nothing_in_flight(by_reference))
    assert full.refused > 0
    assert files(folder) == []
