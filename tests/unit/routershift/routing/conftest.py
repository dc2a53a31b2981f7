"""A tiny model."""

from pathlib import Path

import pytest

from tests.support.models import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path)
