"""Which services a recipe needs."""

from pathlib import Path

import pytest

from services.cli.recipe import Recipe
from shared.recipes import load
from shared.settings import SERVICES

MODEL = "run.model=/models/tiny"


def recipe(tmp_path: Path, text: str, *flags: str) -> Recipe:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    return load(Recipe, file, {}, [MODEL, *flags])


SOURCE = '[[data.{part}]]\nsource = "rows.jsonl"\ncolumns.prompt = "question"\n{who}\n'
MATH, MAZE = 'verifier = "math"', 'environment = "maze"'


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ('run.task = "countdown"', False),
        ('run.task = "calculator"', True),
        ('run.task = "unknown"', False),  # said elsewhere
        (SOURCE.format(part="train", who=MATH), False),
        (SOURCE.format(part="train", who=MAZE), True),
        (SOURCE.format(part="train", who=MATH) + SOURCE.format(part="eval", who=MAZE), True),
        ('run.task = "countdown"\n[environments.named.small]\nkind = "maze"', True),
        ('run.task = "countdown"\n[environments]\nport = 0\nepisode_seconds = 60', False),
    ],
)
def test_environments_run_where_something_asks_for_one(tmp_path: Path, text: str, needed: bool) -> None:
    found = recipe(tmp_path, text).services
    assert ("environments" in found) is needed
    assert set(SERVICES) - set(found) == (set() if needed else {"environments"})
