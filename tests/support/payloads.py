"""Payload stores for tests: in a folder, full, failing, and groups with arrays."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from routershift import wire
from routershift.trajectory import Completion, FinishReason, TopLogprobs, Trajectory, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from shared.payloads.bulk import Bulk
from shared.payloads.folder import FolderStore
from shared.payloads.settings import PayloadSettings
from shared.payloads.store import PayloadStore, Stored
from shared.streams.audit import audit
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.streams.sweep import Sweep
from tests.support.runs import GROUP, prompt

FAST = PayloadSettings(store="folder", outage_seconds=0.2, sweep_seconds=0.05, orphan_seconds=0)


def group(index: int, tokens: int = 50) -> pb.TrajectoryGroup:
    """A group of GROUP responses with all arrays that a completion may have, but routes."""
    made = pb.TrajectoryGroup(prompt=prompt(index))
    for i in range(GROUP):
        numbers = np.random.default_rng((index, i))
        completion = Completion(
            index=i,
            token_ids=numbers.integers(0, 99, tokens, dtype=np.int32),
            logprobs=-numbers.random(tokens, dtype=np.float32),
            versions=(VersionSpan(3, tokens),),
            finish_reason=FinishReason.STOP,
            router_trace=None,
            text=f"answer {i}",
            top_logprobs=TopLogprobs(np.ones((tokens, 2), np.int32), -np.ones((tokens, 2), np.float32)),
        )
        name = pb.TrajectoryId(prompt_id=made.prompt.prompt_id, sample=i)
        made.trajectories.append(wire.encode_trajectory(name, Trajectory(completion)))
    made.generated_at.GetCurrentTime()
    return made


class FullStore:
    """A FAKE of a volume without room: writing fails with ENOSPC until `room` is set. Else the store behind it."""

    def __init__(self, behind: PayloadStore, number: int = errno.ENOSPC) -> None:
        self.behind = behind
        self.room = False
        self.refused = 0
        self._number = number

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        if not self.room:
            self.refused += 1
            raise OSError(self._number, "refused by the test")
        self.behind.put(key, parts)

    def get(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        return self.behind.get(key, offset, size)

    def delete(self, key: str) -> None:
        self.behind.delete(key)

    def list(self) -> Iterator[Stored]:
        return self.behind.list()

    def free_bytes(self) -> int | None:
        return 0

    def __str__(self) -> str:
        return "a full store"


def bulk(folder: Path) -> Bulk:
    """Arrays in files of this folder."""
    folder.mkdir(exist_ok=True)
    return Bulk(FolderStore(folder, fsync=False), FAST)


def files(folder: Path) -> list[str]:
    """The objects of a folder by their names, half-written ones too."""
    return sorted(path.name for path in folder.iterdir() if path.name != "payload-store")


async def generated(run: Run, index: int, tokens: int = 50) -> pb.TrajectoryGroup:
    """A group on the stream of rollouts, as generation hands it over."""
    assert await run.admit(index, prompt(index), 100) == "ok"
    reader = run.consumer(Stream.PROMPTS)
    (entry,) = await reader.read(1)
    made = group(index, tokens)
    assert await reader.hand_over(entry, Stream.ROLLOUTS, made)
    return made


async def judged(run: Run) -> None:
    """Moves the groups of rollouts to the stream of scored groups, as reward does: their bytes, without a store."""
    reader = run.consumer(Stream.ROLLOUTS)
    for entry in await reader.read(10):
        assert await reader.pass_on(entry, Stream.SCORED, b"")


async def swept(redis: Redis, run: Run) -> int:
    assert run.bulk is not None
    return await Sweep(redis, run.keys, run.bulk, FAST).once()


async def problems(redis: Redis, run: Run, folder: Path) -> dict[str, dict[str, str]]:
    return (await audit(redis, run, None, FolderStore(folder))).problems
