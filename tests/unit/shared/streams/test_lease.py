"""The lease of a role of a run: taken, renewed, lost, taken over."""

import asyncio
import subprocess
from dataclasses import replace
from itertools import count

import pytest
from redis.asyncio import Redis

from shared.errors import PreconditionError
from shared.process.ownership import Holder
from shared.streams.keys import Keys
from shared.streams.lease import Lease

_names = count()


@pytest.fixture
def keys() -> Keys:
    return Keys(f"lease-{next(_names)}")


def lease(redis: Redis, keys: Keys, seconds: float = 60.0, **changes: object) -> Lease:
    """The lease of this process, or of one with other properties."""
    made = Lease(redis, keys, seconds)
    made._me = f"{replace(Holder.current(), **changes).encode()}\n{next(_names)}"  # type: ignore[arg-type]  # any field
    return made


def dead_pid() -> int:
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


async def test_a_role_has_one_holder_and_the_next_is_told_which(redis: Redis, keys: Keys) -> None:
    first = lease(redis, keys)
    await first.acquire("learner")
    with pytest.raises(PreconditionError, match=rf"the learner of run {keys.run} is held by process \d+ on"):
        await lease(redis, keys).acquire("learner")
    await lease(redis, keys).acquire("curriculum")
    await first.release()
    second = lease(redis, keys)
    await second.acquire("learner")
    assert (first.fence.number, second.fence.number) == (1, 2)


async def test_a_process_of_this_machine_that_is_gone_is_replaced_at_once(redis: Redis, keys: Keys) -> None:
    await lease(redis, keys, pid=dead_pid()).acquire("learner")
    second = lease(redis, keys)
    await asyncio.wait_for(second.acquire("learner"), 30)  # its lease has 60 s
    assert second.fence.number == 2


async def test_a_silent_process_elsewhere_is_replaced_when_its_lease_has_run_out(redis: Redis, keys: Keys) -> None:
    await lease(redis, keys, 0.5, namespace="pid:[1]").acquire("learner")
    second = lease(redis, keys, 0.5)
    await second.acquire("learner")
    assert second.fence.number == 2


async def test_a_process_elsewhere_that_renews_its_lease_keeps_it(redis: Redis, keys: Keys) -> None:
    first = lease(redis, keys, 1.0, namespace="pid:[1]")
    await first.acquire("learner")
    keeping = asyncio.create_task(first.keep())
    with pytest.raises(PreconditionError, match="is held by"):
        await lease(redis, keys, 1.0).acquire("learner")
    keeping.cancel()


async def test_one_that_was_replaced_learns_of_it_and_cannot_come_back(redis: Redis, keys: Keys) -> None:
    first = lease(redis, keys, 0.3, namespace="pid:[1]")
    await first.acquire("learner")
    second = lease(redis, keys, 60.0)
    await second.acquire("learner")
    with pytest.raises(PreconditionError, match=r"another process has become the learner.*lease_seconds = 0\.3"):
        await asyncio.wait_for(first.keep(), 30)
    await first.release()  # takes nothing from the second
    with pytest.raises(PreconditionError, match="is held by"):
        await lease(redis, keys).acquire("learner")


async def test_a_redis_that_forgot_the_lease_hears_of_it_again(redis: Redis, keys: Keys) -> None:
    first = lease(redis, keys, 0.3)
    await first.acquire("learner")
    await redis.delete(keys("lease:learner"), keys.fences)
    keeping = asyncio.create_task(first.keep())
    while not await redis.exists(keys("lease:learner")):  # noqa: ASYNC110  # Redis has no event
        await asyncio.sleep(0.01)
    assert await redis.hget(keys.fences, "learner") == b"1"
    keeping.cancel()
