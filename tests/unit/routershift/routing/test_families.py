"""The table of families: data that every room reads, and rows of other packages."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from routershift.routing.families import GROUP, families, family_of
from routershift.routing.layout import ScoreFunction
from shared.errors import PreconditionError
from tests.support.entry_points import Site

PACKAGE = """
from routershift.routing.families import Family
from routershift.routing.layout import ScoreFunction

MINE = Family("block.router", ScoreFunction.SIGMOID, lora_attention=("qkv",))
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    families.cache_clear()
    with Site(tmp_path, monkeypatch) as site:
        yield site
    families.cache_clear()


def test_another_package_adds_a_family(site: Site) -> None:
    assert family_of("my_moe") is None
    families.cache_clear()
    site.install(GROUP, "my_moe = routershift_mine:MINE", "routershift_mine", PACKAGE)
    family = family_of("my_moe")
    assert family is not None
    assert (family.router, family.score_function) == ("block.router", ScoreFunction.SIGMOID)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("my_moe = routershift_mine:Family", "is no Family"),
        ("olmoe = routershift_mine:MINE", "the name 'olmoe' is taken"),
    ],
)
def test_an_entry_point_that_is_broken_is_named(site: Site, entry: str, text: str) -> None:
    site.install(GROUP, entry, "routershift_mine", PACKAGE)
    with pytest.raises(PreconditionError, match=f"^entry point {entry} of routershift-mine.*{text}"):
        families()


def test_the_table_needs_no_torch() -> None:
    code = "import sys, routershift.routing.families; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
