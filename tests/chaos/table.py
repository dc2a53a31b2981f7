"""The short table of faults against one running stack, and its account at the end. The long one is a bench."""

from collections.abc import Sequence
from typing import ClassVar

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TABLE


@pytest.mark.asyncio(loop_scope="class")
class ShortTable:
    """What a test module runs; its subclass says what the run is of, and which faults strike it one by one."""

    task: ClassVar[str]  # of the run
    faults: ClassVar[Sequence[str]]  # by their names in the table

    async def test_the_run_goes_on(self, campaign: Campaign, fault: str) -> None:
        assert await campaign.strike(TABLE[fault]) == []

    async def test_the_account_holds_afterwards(self, campaign: Campaign) -> None:
        report = await campaign.finish()
        assert report["found"] == []
        assert (report["lost"], report["trained_twice"], report["wedges"]) == (0, 0, 0)
        assert report["steps"] > 0
