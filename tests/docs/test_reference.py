"""What the pages made from the code leave unsaid: an argument without a help text, a method without a comment."""

import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("page", ["commands.md", "metrics.md", "settings.md", "verifiers.md", "environments.md"])
def test_every_row_says_what_it_is(page: str) -> None:
    rows = [line for line in (REFERENCE / page).read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row for row in rows if not re.split(r"(?<!\\)\|", row)[-2].strip()] == []


def test_every_method_says_what_it_does() -> None:
    methods = re.findall(r"(?m)^- `(\w+)`: .* to .*\)\.(.*)$", (REFERENCE / "protocol.md").read_text())
    assert len(methods) >= 10
    assert [name for name, said in methods if not said.strip()] == []
