"""What of a Python file is an environment, and what is said where nothing is."""

import sys
from pathlib import Path

import pytest

from services.environments.kinds.file.loading import load
from shared.errors import InvalidInputError

SOURCE = """
from pathlib import Path

from services.environments.base import Environment, Step


class Mine(Environment):
    name, description = "mine", "answers once"
    version = "7"

    async def reset(self, task, seed):
        return None

    async def step(self, action):
        return Step(reward=1.0, is_done=True)
"""
OTHER = SOURCE + "\nclass Other(Mine):\n    pass\n"
FILE = Path("mine.py")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file finds the modules beside it, for as long as the process lasts."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_the_only_environment_of_a_file_or_the_one_that_is_named() -> None:
    assert load(FILE, SOURCE, None).__name__ == "Mine"
    assert load(FILE, OTHER, "Other").__name__ == "Other"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("x = (", None, r"mine\.py:1: SyntaxError"),
        ("\n1 / 0", None, r"mine\.py:2: loading it raises ZeroDivisionError"),
        ("raise SystemExit(3)", None, r"mine\.py:1: loading it raises SystemExit: 3"),
        ("x = 1", None, r"mine\.py has no environment: define one"),
        (SOURCE, "Mein", r"mine\.py: Mein is not there; did you mean 'Mine'"),
        (SOURCE, "Path", r"mine\.py: Path is .*no environment"),
        (SOURCE, "Environment", r"mine\.py: Environment is .*no environment"),
        (OTHER, None, r"has 2 environments, Mine, Other: set class_name"),
        (SOURCE.replace("version =", "edition ="), None, r"class Mine has no version"),
        (SOURCE.replace("def step", "def stop_"), None, r"class Mine has no step"),
    ],
)
def test_what_is_none_is_said(source: str, name: str | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load(FILE, source, name)
