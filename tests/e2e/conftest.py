"""Starts commands, and kills what a test leaves of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Start, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `routershift ARGUMENTS` in an empty folder; see `starting`."""
    with starting(tmp_path) as begin:
        yield begin
