"""The short table of faults against one running stack, and its account at the end. The long one is a bench."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.faults import TABLE
from tests.chaos.stack import RECIPE


@pytest.mark.asyncio(loop_scope="class")
class ShortTable:
    """What a test module runs; its subclass says what the run is of, and which faults strike it one by one."""

    settings: ClassVar[Mapping[str, object]]  # of the run
    faults: ClassVar[Sequence[str]]  # by their names in the table
    episodes: ClassVar[bool] = False  # whether the run has a service for them

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        """The recipe of the run; `folder`: where the run is started, for files that the recipe names."""
        return RECIPE

    async def test_the_run_goes_on(self, campaign: Campaign, fault: str) -> None:
        assert await campaign.strike(TABLE[fault]) == []

    async def test_the_account_holds_afterwards(self, campaign: Campaign) -> None:
        report = await campaign.finish()
        assert report["found"] == []
        assert (report["lost"], report["trained_twice"], report["wedges"]) == (0, 0, 0)
        assert report["steps"] > 0
