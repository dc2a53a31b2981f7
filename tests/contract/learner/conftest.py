"""What the learner's tests on a real Redis train: a small model, and groups for it."""

from pathlib import Path

import pytest

from services.learner.data.batch import Group
from tests.support.entries import SAMPLES
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(load(model), groups=12, samples=SAMPLES)
