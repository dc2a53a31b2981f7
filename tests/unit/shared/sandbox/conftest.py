"""Sandboxes for a whole module, whole again after each attack."""

from collections.abc import Iterator

import pytest

from shared.errors import PreconditionError
from shared.sandbox.sandbox import Sandboxes, SandboxSettings
from tests.support.sandboxes import LIMITS, WAITING, processes, run


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[Sandboxes]:
    before = processes()
    try:
        sandboxes = Sandboxes(SandboxSettings(LIMITS), WAITING)
    except PreconditionError as error:
        pytest.skip(str(error))
    yield sandboxes
    sandboxes.close()
    assert processes() == before


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every attack the next program runs as if nothing had been."""
    yield
    if "sandboxes" in request.fixturenames:
        assert run(request.getfixturevalue("sandboxes"), "print(int(input()) + 1)", "41\n") == ("42\n", "exit", 0)
