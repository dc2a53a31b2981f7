"""Objectives by name, from this package and from others."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from routershift.algorithms.objectives.registry import GROUP, objectives
from routershift.algorithms.presets import algorithms
from services.learner.data.batch import Group
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from shared.errors import NotFoundError, PreconditionError
from shared.recipes import load
from tests.support.entry_points import Site
from tests.support.models import save_model
from tests.support.rollouts import load as load_model
from tests.support.rollouts import random_groups

# The ratio itself, not clipped: one file, and nothing else.
PACKAGE = """
import math
from routershift.algorithms.objectives.base import (
    Objective, ObjectiveResult, bounded_exp, log_ratio_and_factor, on_tokens
)


class Unclipped(Objective):
    name = "unclipped"
    clip_low, clip_high = math.inf, math.inf

    def __call__(self, batch, clipping):
        log_ratio, log_factor = log_ratio_and_factor(batch, clipping.apply)
        terms = -bounded_exp(log_ratio + log_factor) * batch.advantages[:, None]
        return ObjectiveResult(on_tokens(terms, batch), batch.mask.new_zeros(batch.mask.shape))

    def refusals(self, algorithm, clip_low, clip_high):
        return [f"{algorithm} clips nothing; leave out clip_high"] if clip_high else []


Nothing = 3
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path, monkeypatch) as site:
        yield site


@pytest.fixture
def groups(model: Path) -> list[Group]:
    return random_groups(load_model(model), groups=2, samples=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_every_objective_knows_its_name_and_is_an_algorithm() -> None:
    for name, objective in objectives().items():
        assert objective.name == name
        assert algorithms()[name].objective.name == name


def test_another_package_adds_an_objective_with_its_refusals(site: Site, model: Path, groups: list[Group]) -> None:
    site.install(GROUP, "unclipped = routershift_unclipped:Unclipped", "routershift_unclipped", PACKAGE)
    flags = [f"run.model={model}", "learner.algorithm=unclipped"]
    settings = load(Settings, None, {}, [*flags, "learner.router_shift.enabled=true"])
    report = Trainer(settings.learner, settings.run, settings.rollout).train_step(groups)
    assert report.skipped is None
    assert report.diagnostics["clip_fraction"] == 0
    assert report.diagnostics["grad_norm"] > 0
    with pytest.raises(ValueError, match="unclipped clips nothing; leave out clip_high"):
        load(Settings, None, {}, [*flags, "learner.clip_high=0.3"])


def test_an_unknown_algorithm_names_those_there_are_and_the_way_to_add_one() -> None:
    with pytest.raises(
        NotFoundError, match=r"learner\.algorithm is 'ppo'; known: grpo, .*rspo.*routershift\.objectives"
    ):
        load(Settings, None, {}, ["run.model=m", "learner.algorithm=ppo"])


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("mine = routershift_unclipped:Missing", "AttributeError"),
        ("mine = routershift_unclipped:Nothing", "is no subclass of Objective"),
        ("grpo = routershift_unclipped:Unclipped", "the name 'grpo' is taken"),
        ("rspo = routershift_unclipped:Unclipped", "named 'rspo', which is an algorithm"),
    ],
)
def test_an_entry_point_that_is_broken_is_named(site: Site, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_unclipped", PACKAGE)
    with pytest.raises(PreconditionError, match=text):
        algorithms()


def test_settings_are_read_where_torch_is_not_installed() -> None:
    program = """
import sys
sys.modules["torch"] = None
from services.learner.settings import LearnerSettings
print(LearnerSettings(algorithm="gspo").clip_range)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "(0.0003, 0.0004)\n", ended.stderr
