"""A process that was replaced can write nothing more, whatever it still believes."""

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import PreconditionError
from shared.settings import StreamSettings
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import Run

PROMPT = pb.Prompt(prompt_id="1", sampling=pb.SamplingParams(n=2))
LARGE = pb.Prompt(prompt_id="1", text="x" * 300_000, sampling=pb.SamplingParams(n=2))


async def replaced(redis: Redis, run: Run, settings: StreamSettings, role: str) -> Run:
    """The same run as a process sees it that held the role before another one."""
    earlier = Run(redis, run.keys.run, settings)
    await earlier.lease.acquire(role)
    await earlier.lease.release()
    await run.lease.acquire(role)
    return earlier


async def snapshot(redis: Redis, run: Run) -> dict[bytes | str, bytes | None]:
    """All keys of the run but payloads on their way, which expire."""
    keys = [key for key in await redis.keys(f"{{{run.keys.run}}}:*") if b":blob:" not in key]
    return {key: await redis.dump(key) for key in sorted(keys)}


WRITES: dict[str, tuple[str, Callable[[Run], Awaitable[object]]]] = {
    "admit": ("curriculum", lambda run: run.admit(0, PROMPT, 4)),
    "admit_large": ("curriculum", lambda run: run.admit(0, LARGE, 4)),
    "report": ("curriculum", lambda run: run.report_progress(Progress(version=3))),
    "announce": ("learner", lambda run: run.announce(pb.WeightsManifest(version=9))),
    "release": ("learner", lambda run: run.return_tickets(["1/0"])),
    "confirm": ("learner", lambda run: run.lease.confirm()),
}


@pytest.mark.parametrize("name", WRITES)
async def test_what_a_replaced_process_writes_is_refused(
    redis: Redis, run: Run, stream_settings: StreamSettings, name: str
) -> None:
    role, write = WRITES[name]
    earlier = await replaced(redis, run, stream_settings, role)
    before = await snapshot(redis, run)
    with pytest.raises(PreconditionError, match=f"another process has become the {role}"):
        await write(earlier)
    assert await snapshot(redis, run) == before
    await write(run)  # the one that holds the role may


async def test_a_replaced_learner_settles_nothing(redis: Redis, run: Run, stream_settings: StreamSettings) -> None:
    await run.admit(0, PROMPT, 4)
    (entry,) = await run.consumer(Stream.PROMPTS).read(1)
    await run.consumer(Stream.PROMPTS).hand_over(entry, Stream.SCORED, pb.TrajectoryGroup())
    earlier = await replaced(redis, run, stream_settings, "learner")
    consumer = earlier.consumer(Stream.SCORED)
    (scored,) = await consumer.read(1)
    before = await snapshot(redis, run)
    with pytest.raises(PreconditionError, match="another process has become the learner"):
        await consumer.end(scored, End.trained(1))
    assert await snapshot(redis, run) == before
    assert await run.consumer(Stream.SCORED).end(scored, End.trained(1))
    assert (await run.ledger()).trained == 2


async def test_the_run_knows_how_many_have_held_a_role(redis: Redis, run: Run, stream_settings: StreamSettings) -> None:
    assert await run.holders() == {}
    await replaced(redis, run, stream_settings, "learner")
    assert await run.holders() == {"learner": 2}
