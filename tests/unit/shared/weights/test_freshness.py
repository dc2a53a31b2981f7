"""How long a prompt waits for new weights."""

import asyncio
import time

import pytest

from routershift.v1 import trajectory_pb2 as pb
from shared.weights.freshness import Freshness


class Serving:
    """Generation, as far as it is asked here."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def served(self) -> int:
        return self.version


def freshness(
    generation: Serving, newest: int | None, refused: int = -1, timeout: float = 60.0, max_staleness: int = 2
) -> Freshness:
    async def announced() -> pb.WeightsManifest | None:
        return None if newest is None else pb.WeightsManifest(version=newest)

    return Freshness(generation.served, announced, max_staleness, timeout, refused=lambda: refused)


@pytest.mark.parametrize(("served", "newest", "refused"), [(0, None, -1), (3, 3, -1), (4, 3, -1), (1, 3, 3), (1, 3, 4)])
async def test_what_is_fresh_enough_or_cannot_be_fresher_does_not_wait(
    served: int, newest: int | None, refused: int
) -> None:
    async with asyncio.timeout(30):
        await freshness(Serving(served), newest, refused).wait()


@pytest.mark.parametrize(("served", "refused"), [(2, -1), (0, -1), (1, 2)])
async def test_a_prompt_waits_for_the_version_announced_when_it_came(served: int, refused: int) -> None:
    generation = Serving(served)
    waiting = asyncio.create_task(freshness(generation, 3, refused).wait())
    for version in range(served, 3):
        generation.version = version
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
    generation.version = 3
    async with asyncio.timeout(30):
        await waiting


async def test_a_version_that_never_comes_is_waited_for_once(caplog: pytest.LogCaptureFixture) -> None:
    """What is sampled then may be dropped with its reason, and the run says so."""
    late = freshness(Serving(2), 3, timeout=0.2)
    began = time.monotonic()
    async with asyncio.timeout(30):
        await late.wait()
        assert time.monotonic() - began >= 0.2
        for _ in range(200):  # would take 40 s
            await late.wait()
    (line,) = caplog.messages
    assert "version 3 is not served 0.2 s after it was needed" in line


async def test_nothing_is_sampled_that_is_sure_to_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A synchronous run goes on with the version announced, or not at all."""
    generation = Serving(1)
    late = freshness(generation, 4, timeout=0.1, max_staleness=1)
    waiting = [asyncio.create_task(late.wait()) for _ in range(3)]
    for version in (1, 2):
        generation.version = version
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
    generation.version = 3
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting, late.wait())
    (line,) = caplog.messages
    assert "nothing older than version 3 (run.max_staleness 1)" in line


async def test_a_version_refused_after_the_wait_is_not_waited_for() -> None:
    async with asyncio.timeout(30):
        await freshness(Serving(1), 4, refused=4, timeout=0.0, max_staleness=0).wait()
