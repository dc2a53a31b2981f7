"""Settings that pages and manifests name are there: a key that moved is found wherever it is written."""

import re
from collections.abc import Iterator
from pathlib import Path

from services.cli.recipe import Recipe
from tests.support.keys import exists
from tests.support.pages import ROOT, all_pages

TABLES = "|".join(Recipe.model_fields)
WRITTEN = re.compile(rf"(?:`|--set )((?:{TABLES})\.[a-z_]+(?:\.[a-z_]+)*)(?=[`=\s])")
VARIABLE = re.compile(rf"\bROUTERSHIFT_((?:{TABLES.upper()})__[A-Z0-9_]+)")


def manifests() -> Iterator[Path]:
    yield ROOT / "docker-compose.yml"
    yield from (path for ending in ("*.yaml", "*.yml", "*.sh") for path in (ROOT / "deploy").rglob(ending))


def test_settings_that_pages_name_exist() -> None:
    named = {
        (page.relative_to(ROOT), name)
        for page in all_pages()
        if page.name != "CHANGELOG.md"
        for name in WRITTEN.findall(page.read_text())
        if not name.endswith((".py", ".jsonl", ".md"))
    }
    assert len(named) > 30
    assert sorted(f"{page}: {name}" for page, name in named if not exists(name.split("."))) == []


def test_variables_that_manifests_and_pages_set_exist() -> None:
    named = {
        (path.relative_to(ROOT), name)
        for path in (*manifests(), *all_pages())
        for name in VARIABLE.findall(path.read_text())
    }
    assert len(named) > 10
    assert sorted(f"{path}: {name}" for path, name in named if not exists(name.lower().split("__"))) == []
