"""A tiny model and groups for it, and an optional package."""

import os
from pathlib import Path

import pytest

from services.learner.data.batch import Group
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.wheels import packages


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


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Can be imported here and in child processes. Where it is installed, transformers imports it in every process."""
    folder = str(packages("torchao"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))))
