"""The data path is held on every server that is found."""

from collections.abc import Iterator

import pytest

from tests.support.redis_server import Server, binaries, missing


@pytest.fixture(scope="session", params=[*binaries(), *missing()])
def redis_binary(request: pytest.FixtureRequest) -> str:
    """The server that tests start, one after the other; a line of which none is here is skipped."""
    if how := missing().get(request.param):
        pytest.skip(f"no server of {request.param}: {how}")
    return binaries()[request.param]


@pytest.fixture(scope="session")
def redis_url(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One of its own: what the whole session shares would be cached from tests of other folders."""
    folder = tmp_path_factory.mktemp("redis")
    with Server(folder, folder / "redis.sock", appendonly=False, binary=redis_binary) as server:
        yield server.url
