"""One running stack for each table of faults."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chaos.campaign import Campaign
from tests.chaos.stack import running
from tests.chaos.table import ShortTable


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and issubclass(metafunc.cls, ShortTable) and "fault" in metafunc.fixturenames:
        metafunc.parametrize("fault", metafunc.cls.faults)


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def campaign(request: pytest.FixtureRequest) -> AsyncIterator[Campaign]:
    table: type[ShortTable] = request.cls
    async with running("always", {"generation.engine": "torch", **table.settings}, table.recipe) as stack:
        assert ("environments" in stack.services()) == table.episodes
        yield Campaign(stack)
