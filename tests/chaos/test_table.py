"""The short table of faults against one running stack, and its account at the end. The long one is a bench."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TABLE
from tests.chaos.stack import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = (
    "kill curriculum", "kill generation", "kill reward", "kill learner",
    "terminate generation", "stop reward", "stop learner", "wedge curriculum",
    "cut everybody", "half_open learner", "delay generation", "mute everybody",
    "kill_redis redis", "redis_full redis", "disk_full disk",
    "clock_ahead redis", "clock_behind learner", "deliver_twice learner", "replica reward",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def campaign() -> AsyncIterator[Campaign]:
    async with running("always", {"generation.engine": "torch"}) as stack:
        yield Campaign(stack)


@pytest.mark.parametrize("name", SHORT)
async def test_the_run_goes_on(campaign: Campaign, name: str) -> None:
    assert await campaign.strike(TABLE[name]) == []


async def test_the_account_holds_afterwards(campaign: Campaign) -> None:
    report = await campaign.finish()
    assert report["found"] == []
    assert (report["lost"], report["trained_twice"], report["wedges"]) == (0, 0, 0)
    assert report["steps"] > 0
