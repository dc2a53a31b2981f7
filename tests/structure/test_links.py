"""Every page leads to something: links between files of this repository, and headings in them."""

import re
from pathlib import Path

from tests.support.pages import ROOT, all_pages, prose

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links to them."""
    titles = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    broken = []
    for page in all_pages():
        for target, heading in LINK.findall(prose(page)):
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or (heading and heading not in anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}#{heading}")
    assert broken == []


def test_every_page_of_docs_is_in_the_index() -> None:
    docs = ROOT / "docs"
    linked = {(docs / target).resolve() for target, _ in LINK.findall(prose(docs / "README.md"))}
    missing = [page for page in all_pages() if page.is_relative_to(docs) and page.name != "README.md"]
    assert [str(page) for page in missing if page.resolve() not in linked] == []
