"""The page on traces lists the spans that there are, with their attributes."""

import re
from pathlib import Path
from typing import get_type_hints

from shared.tracing.kinds import KINDS

ROOT = Path(__file__).parents[4]


def test_the_page_has_each_span_with_its_attributes() -> None:
    page = (ROOT / "docs/how-to/follow-a-prompt.md").read_text()
    documented = {}
    for name, attributes in re.findall(r"^\| `([a-z ]+)` \| [^|]+ \| [^|]+ \|(.*)\|$", page, re.MULTILINE):
        # `a`, `b`: meaning; `c`
        named = {word for part in attributes.split(";") for word in re.findall(r"`(\w+)`", part.partition(":")[0])}
        documented[name] = named
    assert documented == {kind.name: set(get_type_hints(kind.attributes)) for kind in KINDS}


def test_names_are_given_once() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_each_kind_is_recorded_somewhere() -> None:
    sources = [
        file.read_text()
        for folder in ("services", "shared")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "kinds.py"
    ]
    kinds = (ROOT / "shared/tracing/kinds.py").read_text()
    names = re.findall(r"^([A-Z]+) = Kind\(", kinds, re.MULTILINE)
    assert len(names) == len(KINDS)
    assert [name for name in names if not any(re.search(rf"\b{name}\b", text) for text in sources)] == []
