"""The payload store and the account, on a real Redis and real files: whatever dies when, nothing dangles."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.settings import StreamSettings
from shared.streams.consumer import End, parse
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.streams.sweep import Sweep
from tests.support.payloads import FAST, files, generated, group, judged, problems, swept
from tests.support.runs import prompt


async def test_arrays_lie_in_a_file_until_their_group_ends(
    redis: Redis, run: Run, by_reference: Run, folder: Path
) -> None:
    made = await generated(by_reference, 0)
    (name,) = files(folder)
    await judged(run)
    reader = by_reference.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    assert entry.reference == name
    assert len(entry.payload) < made.ByteSize() / 4
    received = parse(pb.TrajectoryGroup, entry)
    assert by_reference.bulk is not None
    by_reference.bulk.attach(received, entry.reference)
    assert received == made
    assert await problems(redis, run, folder) == {}
    assert await reader.end(entry.ref, End.trained(1))
    assert files(folder) == []
    assert await by_reference.payloads_referred_to() == 0
    assert await problems(redis, run, folder) == {}


async def test_without_a_store_nothing_on_the_wire_is_different(redis: Redis, run: Run) -> None:
    made = await generated(run, 0)
    (entry,) = await run.consumer(Stream.ROLLOUTS).read(1)
    assert (entry.payload, entry.reference) == (made.SerializeToString(), "")
    assert not await redis.exists(run.keys.payloads)


async def test_a_group_that_is_played_twice_has_two_files_and_the_slower_one_goes(
    redis: Redis, by_reference: Run, stream_settings: StreamSettings, folder: Path
) -> None:
    await by_reference.admit(0, prompt(0), 10)
    slow, fast = by_reference.consumer(Stream.PROMPTS), by_reference.consumer(Stream.PROMPTS)
    (entry,) = await slow.read(1)
    (again,) = await fast.read(1)
    assert entry.id == again.id
    assert await fast.hand_over(again, Stream.ROLLOUTS, group(0, 60))
    (kept,) = files(folder)
    assert not await slow.hand_over(entry, Stream.ROLLOUTS, group(0, 50))
    assert files(folder) == [kept]
    (rollout,) = await by_reference.consumer(Stream.ROLLOUTS).read(1)
    received = parse(pb.TrajectoryGroup, rollout)
    assert by_reference.bulk is not None
    by_reference.bulk.attach(received, rollout.reference)
    assert [t.completion.token_ids.shape[0] for t in received.trajectories] == [60] * 4


_WRITER = """
import asyncio, sys, time
from pathlib import Path
from shared.payloads.folder import FolderStore
from shared.payloads.bulk import Bulk
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.payloads import FAST, group

class Stops(FolderStore):
    def put(self, key, parts):
        if HALF:
            (self._folder / f".{key}.writing").write_bytes(parts[0])
        else:
            super().put(key, parts)
        if key.startswith("prompts"):
            print("written", flush=True)
            time.sleep(600)

async def main():
    redis = await connect(RedisSettings(url=sys.argv[1]))
    run = Run(redis, sys.argv[2], StreamSettings(consumer="killed"), Bulk(Stops(Path(sys.argv[3])), FAST))
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    await reader.hand_over(entry, Stream.ROLLOUTS, group(0))

asyncio.run(main())
"""


@pytest.mark.parametrize("half", [False, True], ids=["before_xadd", "half_written"])
async def test_a_writer_that_is_killed_before_it_hands_over_leaves_an_orphan_that_is_swept(
    half: bool, redis: Redis, redis_url: str, by_reference: Run, folder: Path, stream_settings: StreamSettings
) -> None:
    await by_reference.admit(0, prompt(0), 10)
    command = [sys.executable, "-c", f"HALF = {half}\n{_WRITER}", redis_url, by_reference.keys.run, str(folder)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert await writer.stdout.readline() == b"written\n"
    writer.send_signal(signal.SIGKILL)
    await writer.wait()
    (orphan,) = files(folder)
    # Its prompt still waits to be played: the writer could be slow, and not dead.
    assert await swept(redis, by_reference) == 0
    await asyncio.sleep(stream_settings.idle_seconds * 2)
    reader = by_reference.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    assert await reader.hand_over(entry, Stream.ROLLOUTS, group(0))
    assert orphan in files(folder)
    assert await swept(redis, by_reference) == 1
    (kept,) = files(folder)
    assert kept not in (orphan, orphan.removeprefix(".").removesuffix(".writing"))
    assert await problems(redis, by_reference, folder) == {}


async def test_who_is_killed_between_the_end_and_the_deletion_leaves_it_to_the_sweep(
    redis: Redis, run: Run, by_reference: Run, folder: Path
) -> None:
    await generated(by_reference, 0)
    await judged(run)
    # `run` has no store: it settles and deletes nothing, as a process that dies in between, and as reward always.
    reader = run.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    assert await reader.end(entry, End.trained(1))
    assert len(files(folder)) == 1
    assert await problems(redis, run, folder) == {}
    assert await swept(redis, by_reference) == 1
    assert files(folder) == []


async def test_a_sweep_leaves_what_is_young_or_referred_to_or_not_ours(
    redis: Redis, run: Run, by_reference: Run, folder: Path
) -> None:
    await generated(by_reference, 0)
    (folder / "notes.txt").write_text("of a person")
    orphan = folder / "prompts-1-0-0123456789abcdef"
    orphan.write_bytes(b"x")
    assert by_reference.bulk is not None
    patient = Sweep(redis, run.keys, by_reference.bulk, FAST.model_copy(update={"orphan_seconds": 60.0}))
    assert await patient.once() == 0
    os.utime(orphan, (time.time() - 61, time.time() - 61))
    assert await patient.once() == 1
    assert len(files(folder)) == 2
    assert (folder / "notes.txt").exists()


async def test_a_dead_letter_keeps_its_arrays_until_it_is_purged(
    redis: Redis, run: Run, by_reference: Run, folder: Path
) -> None:
    await generated(by_reference, 0)
    await judged(run)
    reader = by_reference.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    assert await reader.bury(entry, "bad_trajectory", "for the test")
    assert await swept(redis, by_reference) == 0
    assert await problems(redis, run, folder) == {}
    (letter,) = await run.dead.ids()
    await run.dead.replay(letter)
    (back,) = await reader.read(1)
    assert back.reference == entry.reference
    received = parse(pb.TrajectoryGroup, back)
    assert by_reference.bulk is not None
    by_reference.bulk.attach(received, back.reference)
    await reader.bury(back, "bad_trajectory", "for the test")
    (letter,) = await run.dead.ids()
    await run.dead.purge(letter)
    assert await problems(redis, run, folder) == {}
    assert await swept(redis, by_reference) == 1
    assert files(folder) == []


async def test_the_audit_finds_what_dangles(redis: Redis, run: Run, by_reference: Run, folder: Path) -> None:
    for i in range(3):
        await generated(by_reference, i)
    names = {entry.group: entry.reference for entry in await run.consumer(Stream.ROLLOUTS).read(3)}
    first, second, third = sorted(names)
    (folder / names[first]).unlink()
    await redis.hdel(run.keys.payloads, names[second])
    await redis.hset(run.keys.payloads, "prompts-9-9-0123456789abcdef", third)
    found = await problems(redis, run, folder)
    assert set(found) == {"payload_lost", "payload_not_on_record", "payload_without_entry"}
    assert set(found["payload_lost"]) == {first, third}
    assert set(found["payload_not_on_record"]) == {second}
