"""The data path is held on every server that is found."""

import pytest

from tests.support.redis_server import binaries


@pytest.fixture(scope="session", params=binaries().items(), ids=lambda server: server[0])
def redis_binary(request: pytest.FixtureRequest) -> str:
    """The server that tests start, one after the other."""
    return str(request.param[1])
