"""Pages of docs/ do what they say."""

from pathlib import Path

import pytest

from tests.support.pages import follow

DOCS = Path(__file__).parents[2] / "docs"
PATTERNS = ("add-*", "use-as-*", "write-*", "choose-prompts-*")
PAGES = [
    *(page for pattern in PATTERNS for page in sorted(DOCS.glob(f"how-to/{pattern}.md"))),
    DOCS / "explanation/router-shift.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)
