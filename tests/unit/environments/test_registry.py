"""Environments by name, from this package, from others, and from the tables of a recipe."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.environments.kinds.calculator import CalculatorSettings
from services.environments.registry import GROUP, find, kinds, make_environments
from shared.errors import InvalidInputError, NotFoundError, PreconditionError
from tests.support.entry_points import Site

PACKAGE = """
from pydantic import Field
from services.environments.base import Environment, EnvironmentSettings, Step

class Settings(EnvironmentSettings):
    sides: int = Field(ge=2)

class Dice(Environment):
    name, version, description, Settings = "dice", "1", "dice", Settings

    async def reset(self, task, seed):
        return None

    async def step(self, action):
        return Step(reward=1.0 / self.settings.sides, is_done=True)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path, monkeypatch) as site:
        yield site


def test_a_kind_that_needs_no_settings_needs_no_table() -> None:
    made = set(make_environments({}))
    assert made >= {"calculator", "maze", "python"}
    assert kinds().keys() - made >= {"file", "remote"}


def test_every_kind_says_what_it_is() -> None:
    for name, kind in kinds().items():
        assert (kind.name, bool(kind.version), bool(kind.description)) == (name, True, True)


def test_tables_give_settings_and_names() -> None:
    made = make_environments({"mine": {"kind": "calculator", "checks": 2}, "maze": {"size": 3}})
    assert made["mine"].settings == CalculatorSettings(checks=2)
    assert made["mine"].make() is not made["mine"].make(), "one for each episode"
    assert made["maze"].settings.model_dump()["size"] == 3
    assert made["calculator"].settings == CalculatorSettings()


def test_another_package_adds_a_kind(site: Site) -> None:
    site.install(GROUP, "dice = routershift_dice:Dice", "routershift_dice", PACKAGE)
    assert "dice" not in make_environments({}), "it needs settings"
    assert make_environments({"dice": {"sides": 6}})["dice"].kind.name == "dice"
    with pytest.raises(InvalidInputError, match=r"setting 'environments\.named\.dice\.sides' Field required"):
        make_environments({"dice": {}})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def check(self): raise PreconditionError('no room')", "environments.named.dice: no room"),
        ("def check(self): raise KeyError('no room')", "environments.named.dice: making it raises KeyError: 'no room'"),
        ("def __init__(self, settings): 1 / 0", "environments.named.dice: making it raises ZeroDivisionError"),
    ],
)
def test_what_would_keep_it_from_playing_is_said_at_the_start(site: Site, source: str, message: str) -> None:
    package = f"from shared.errors import PreconditionError\n{PACKAGE}\n    {source}\n"
    site.install(GROUP, "dice = routershift_dice:Dice", "routershift_dice", package)
    with pytest.raises(PreconditionError, match=re.escape(message)):
        make_environments({"dice": {"sides": 6}})


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("dice = routershift_dice:Nothing", "AttributeError"),
        ("dice = routershift_dice:Settings", "is no subclass of Environment; fix or uninstall it"),
        ("maze = routershift_dice:Dice", "the name 'maze' is taken in routershift.environments"),
    ],
)
def test_an_entry_point_that_is_wrong_is_named(site: Site, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_dice", PACKAGE)
    with pytest.raises(PreconditionError, match=text):
        make_environments({})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "calculater"}, r"'environments\.named\.mine\.kind' is 'calculater'; did you mean 'calculator'\?"),
        ({}, r"'environments\.named\.mine\.kind' is 'mine'; did you mean .* The kinds are calculator, maze"),
        ({"kind": "calculator", "cheks": 2}, r"unknown setting .*mine\.cheks'; did you mean .*mine\.checks'"),
        ({"kind": "maze", "size": 1}, r"setting 'environments\.named\.mine\.size' is '1': Input should be greater"),
        ({"kind": "python", "tool_seconds": 5}, r"tool_seconds is 5; at least seconds \+ idle_seconds \+ 5 = 14"),
    ],
)
def test_a_table_that_is_wrong_says_where_and_what(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_environments({"mine": table})


def test_an_unknown_name_comes_with_the_one_that_was_meant() -> None:
    with pytest.raises(NotFoundError, match=r"environment is 'maize'; known: .*; did you mean 'maze'"):
        find(make_environments({}), "maize")
