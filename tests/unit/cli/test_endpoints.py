"""The file in which a run says where its services answer."""

from pathlib import Path

import pytest

from services.cli.endpoints import Addresses, Endpoints
from shared.errors import NotFoundError, PreconditionError

WRITTEN = Endpoints(
    run="r-1",
    redis="redis://127.0.0.1:6379/0",
    services={"learner": Addresses(grpc="127.0.0.1:5000", metrics="http://127.0.0.1:5001/metrics")},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    WRITTEN.write(tmp_path)
    assert Endpoints.read(tmp_path) == WRITTEN
    assert WRITTEN.grpc("learner") == "127.0.0.1:5000"
    with pytest.raises(NotFoundError, match="run r-1 has no service reward; it has learner"):
        WRITTEN.grpc("reward")


def test_a_run_that_was_never_started_has_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"endpoints\.json does not exist"):
        Endpoints.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"run": "r", "redis": "REDIS_URL"}', "services: Field required"),
        ('{"run": "r", "redis": "", "services": {"learner": {"metrics": ""}}}', r"services\.learner\.grpc: Field"),
    ],
)
def test_another_file_of_the_name_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(text)
    with pytest.raises(PreconditionError, match=rf"endpoints\.json: .*{said}.*; start the run again"):
        Endpoints.read(tmp_path)
