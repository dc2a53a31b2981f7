"""Engines by name, from this package and from others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.generation.engines.registry import GROUP, engines, make_engine
from services.generation.settings import GenerationSettings, Settings
from shared.errors import NotFoundError, PreconditionError
from shared.settings import RunSettings
from tests.support.entry_points import Site
from tests.support.models import save_model

PACKAGE = """
class Scripted:
    def __init__(self, model, options, settings):
        self.model, self.options, self.settings = model, options, settings

def make(model, options, settings):
    return Scripted(model, options, settings.engine_settings)

NOTHING = 3
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path, monkeypatch) as site:
        yield site


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def settings(model: Path, engine: str, **engine_settings: Any) -> Settings:
    generation = GenerationSettings(engine=engine, max_num_seqs=3, engine_settings=engine_settings)
    return Settings(run=RunSettings(model=model), generation=generation)


def test_another_package_adds_an_engine_with_settings_of_its_own(site: Site, model: Path) -> None:
    site.install(GROUP, "scripted = routershift_scripted:make", "routershift_scripted", PACKAGE)
    engine: Any = make_engine(settings(model, "scripted", answer="yes"))
    assert (engine.model, engine.options.max_num_seqs, engine.settings) == (model, 3, {"answer": "yes"})


def test_an_unknown_engine_names_those_there_are_and_the_way_to_add_one(model: Path) -> None:
    assert set(engines()) == {"vllm", "torch"}
    with pytest.raises(
        NotFoundError, match=r"generation\.engine is 'sglang'; known: vllm, torch.*routershift\.engines"
    ):
        make_engine(settings(model, "sglang"))


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("scripted = routershift_scripted:Missing", "AttributeError"),
        ("scripted = routershift_scripted:NOTHING", "is no function that makes an engine"),
        ("torch = routershift_scripted:make", "the name 'torch' is taken"),
    ],
)
def test_an_entry_point_that_is_broken_is_named(site: Site, model: Path, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_scripted", PACKAGE)
    with pytest.raises(PreconditionError, match=f"^entry point {entry} of routershift-scripted.*{text}"):
        make_engine(settings(model, "scripted"))
