"""Faults in the middle of episodes: a run whose prompts have an environment goes on, and its account holds."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TABLE
from tests.chaos.stack import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = (
    "kill environments", "stop environments", "cut environments", "deliver_twice environments", "kill generation",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def campaign() -> AsyncIterator[Campaign]:
    async with running("always", {"generation.engine": "torch", "run.task": "calculator"}) as stack:
        assert "environments" in stack.services()
        yield Campaign(stack)


@pytest.mark.parametrize("name", SHORT)
async def test_the_run_goes_on(campaign: Campaign, name: str) -> None:
    assert await campaign.strike(TABLE[name]) == []


async def test_the_account_holds_afterwards(campaign: Campaign) -> None:
    report = await campaign.finish()
    assert report["found"] == []
    assert (report["lost"], report["trained_twice"], report["wedges"]) == (0, 0, 0)
    assert report["steps"] > 0
