"""Cells for a whole module, whole again after each attack."""

from collections.abc import Iterator

import pytest

from services.reward.sandbox.cells import Cells, CellSettings
from shared.errors import PreconditionError
from tests.support.cells import LIMITS, WAITING, processes, run


@pytest.fixture(scope="module")
def cells() -> Iterator[Cells]:
    before = processes()
    try:
        cells = Cells(CellSettings(LIMITS), WAITING)
    except PreconditionError as error:
        pytest.skip(str(error))
    yield cells
    cells.close()
    assert processes() == before


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every attack the next program runs as if nothing had been."""
    yield
    if "cells" in request.fixturenames:
        assert run(request.getfixturevalue("cells"), "print(int(input()) + 1)", "41\n") == ("42\n", "exit", 0)
