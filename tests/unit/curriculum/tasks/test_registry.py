"""Tasks by name, from this package and from others."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.curriculum.tasks.base import Task
from services.curriculum.tasks.registry import GROUP, make_task, tasks
from shared.errors import NotFoundError, PreconditionError
from tests.support.entry_points import Site

PACKAGE = """
from dataclasses import dataclass
from services.curriculum.tasks.base import Task

@dataclass
class Problem:
    prompt: str
    reference: dict

class Parity(Task):
    name, verifier = "parity", "exact"

    def train(self, index):
        return Problem(f"Is {2 * index + self.seed} even?", {"answer": "yes"})

    def held_out(self, count):
        return [Problem(f"Is {2 * i + 1} even?", {"answer": "no"}) for i in range(count)]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path, monkeypatch) as site:
        yield site


def test_every_task_knows_its_name_and_its_verifier() -> None:
    for name, task in tasks().items():
        assert task.name == name
        assert task.verifier or task.environment


def test_another_package_adds_a_task_with_a_verifier_of_another_name(site: Site) -> None:
    site.install(GROUP, "parity = routershift_parity:Parity", "routershift_parity", PACKAGE)
    task = make_task("parity", 4)
    assert isinstance(task, Task)
    assert task.verifier == "exact"
    assert task.train(3).prompt == "Is 10 even?"
    assert [problem.reference for problem in task.held_out(2)] == [{"answer": "no"}] * 2


def test_an_unknown_task_names_those_there_are_and_the_way_to_add_one() -> None:
    with pytest.raises(NotFoundError, match=r"run\.task is 'chess'; known: countdown.*routershift\.tasks"):
        make_task("chess", 0)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("parity = routershift_parity:Nothing", "AttributeError"),
        ("parity = routershift_parity:Problem", "is no subclass of Task"),
        ("countdown = routershift_parity:Parity", "the name 'countdown' is taken"),
    ],
)
def test_an_entry_point_that_is_broken_is_named(site: Site, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_parity", PACKAGE)
    with pytest.raises(PreconditionError, match=f"^entry point {entry} of routershift-parity.*{text}"):
        make_task("countdown", 0)
