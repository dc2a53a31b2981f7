"""The pages of docs/how-to do what they say."""

from pathlib import Path

import pytest

from tests.support.pages import follow

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = [
    page
    for pattern in ("add-*.md", "use-as-*.md", "write-*.md", "choose-prompts-*.md")
    for page in sorted(HOW_TO.glob(pattern))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)
