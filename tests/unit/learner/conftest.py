"""A tiny model and groups for it."""

from pathlib import Path

import pytest

from services.learner.data.batch import Group
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stale(folder: Path) -> list[Group]:
    """Sampled by other weights, as version 0."""
    return random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> list[Group]:
    return random_groups(load(folder), groups=4, samples=4)
