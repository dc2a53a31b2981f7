"""Payload stores that lose, fail, fill up or are not there: what is waited for, what ends, and what is said."""

import asyncio
import errno
from pathlib import Path

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import PreconditionError, UnavailableError
from shared.payloads.bulk import Bulk, PayloadCorruptError, PayloadLostError
from shared.payloads.folder import FolderStore
from shared.settings import StreamSettings
from shared.streams.consumer import Consumer, parse
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.payloads import FAST, FullStore, files, generated, group


async def test_lost_and_corrupt_payloads_are_told_apart(run: Run, by_reference: Run, folder: Path) -> None:
    assert by_reference.bulk is not None
    await generated(by_reference, 0)
    (entry,) = await run.consumer(Stream.ROLLOUTS).read(1)
    (file,) = (folder / name for name in files(folder))
    whole = file.read_bytes()
    for damaged, kind, message in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), PayloadCorruptError, "has CRC-32"),
        (whole[:-1], PayloadLostError, f"ends at byte {len(whole) - 1}"),
        (None, PayloadLostError, "it was deleted"),
    ):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(kind, match=message):
            by_reference.bulk.attach(parse(pb.TrajectoryGroup, entry), entry.reference)
    with pytest.raises(PayloadCorruptError, match="the entry names 'prompts-9-9"):
        by_reference.bulk.attach(parse(pb.TrajectoryGroup, entry), "prompts-9-9-0123456789abcdef")


async def test_a_volume_that_is_not_mounted_loses_nothing(by_reference: Run, folder: Path, tmp_path: Path) -> None:
    assert by_reference.bulk is not None
    made = await generated(by_reference, 0)
    (entry,) = await by_reference.consumer(Stream.ROLLOUTS).read(1)
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    with pytest.raises(UnavailableError, match=r"outage_seconds, 0\.2: it is not mounted"):
        await asyncio.to_thread(by_reference.bulk.attach, parse(pb.TrajectoryGroup, entry), entry.reference)
    with pytest.raises(PreconditionError, match="has none of the 1 payloads that entries refer to"):
        await by_reference.open()
    folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    await by_reference.open()
    received = parse(pb.TrajectoryGroup, entry)
    by_reference.bulk.attach(received, entry.reference)
    assert received == made


async def test_a_full_store_is_waited_for_and_the_learner_hears_of_it(
    redis: Redis, run: Run, by_reference: Run, folder: Path, stream_settings: StreamSettings
) -> None:
    full = FullStore(FolderStore(folder), errno.ENOSPC)
    starved = Run(redis, run.keys.run, stream_settings, Bulk(full, FAST))
    writing = asyncio.create_task(generated(starved, 0))
    async with asyncio.timeout(30):
        while full.refused < 2:  # noqa: ASYNC110  # of another task's thread
            await asyncio.sleep(0.02)
    assert await run.has_waiting_producer("payloads")
    assert not await run.has_waiting_producer(Stream.SCORED)
    full.room = True
    await writing
    assert len(files(folder)) == 1


async def test_a_store_that_fails_for_long_ends_the_writer_and_its_prompt_is_played_again(
    redis: Redis, run: Run, by_reference: Run, folder: Path, stream_settings: StreamSettings
) -> None:
    failing = Run(redis, run.keys.run, stream_settings, Bulk(FullStore(FolderStore(folder), errno.EIO), FAST))
    with pytest.raises(UnavailableError, match=r"a full store has failed for payloads\.outage_seconds, 0\.2"):
        await generated(failing, 0)
    reader: Consumer = by_reference.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    assert await reader.hand_over(entry, Stream.ROLLOUTS, group(0))


async def test_a_store_that_cannot_be_written_to_is_refused_at_the_start(
    redis: Redis, run: Run, folder: Path, stream_settings: StreamSettings
) -> None:
    folder.mkdir()
    store = FullStore(FolderStore(folder), errno.EROFS)
    with pytest.raises(PreconditionError, match="a full store cannot be written to: refused by the test"):
        await Run(redis, run.keys.run, stream_settings, Bulk(store, FAST)).open()
