"""The documentation builds as a site without a warning; links lead somewhere, and nothing is loaded from elsewhere."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import CHROMIUM, MISSING, browser
from tests.support.pages import ROOT, all_pages

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="no mkdocs-material: pip install -r deploy/locks/docs.txt"
)
# Of HTML, SVG and MathML, as the theme, our pages and formulas use them.
TAGS = set(
    re.findall(
        r"\w+",
        """
        a article aside b blockquote body br button code del div em footer form h1 h2 h3 h4 head header hr html img
        input label li link main meta nav ol p path picture pre script section source span strong style svg table tbody
        td th thead title tr ul math mfrac mi mn mo mover mrow mspace msqrt mstyle msub msubsup msup mtext munder
        munderover
        """,
    )
)
# What a page loads by itself, by tag and attribute; links that a reader follows may lead anywhere.
_LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "srcset"), ("iframe", "src")}
_ADDRESS = re.compile(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)")


@dataclass
class Html:
    """What a page of the site has and leads to."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    formulas: int = 0
    text: str = ""


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Html()
        self._code = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._code += tag in ("code", "script", "style")
        self.page.formulas += tag == "math"
        self.page.tags.add(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.page.ids.add(value)
            elif (tag, name) in _LOADED and value:
                self.page.loaded.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.page.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.page.text += data


def read(page: Path) -> Html:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader.page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    """Every page but the one for addresses that are not there, whose links are absolute."""
    return {page: read(page) for page in sorted(site.rglob("*.html")) if page.name != "404.html"}


def test_every_page_of_the_repository_is_a_page_of_the_site(site: Path, pages: dict[Path, Html]) -> None:
    titles = "\n".join(page.text for page in pages.values())
    missing = [
        str(page.relative_to(ROOT))
        for page in all_pages()
        if page != ROOT / "docs/README.md" and page.read_text().partition("\n")[0].strip("# `") not in titles
    ]
    assert missing == []
    assert len(pages) == len(all_pages()) - 1


def test_every_link_leads_to_a_page_and_a_heading(site: Path, pages: dict[Path, Html]) -> None:
    broken, followed = [], 0
    for page, html in pages.items():
        for link in html.links + html.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].ids if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []
    assert followed > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    loaded = [(page, link) for page, html in pages.items() for link in html.loaded]
    loaded += [(sheet, link) for sheet in site.rglob("*.css") for link in _ADDRESS.findall(sheet.read_text())]
    assert [(str(page), link) for page, link in loaded if urlsplit(link).netloc] == []


def test_pictures_are_shown_and_small(site: Path, pages: dict[Path, Html]) -> None:
    shown = {(page.parent / link).resolve() for page, html in pages.items() for link in html.loaded}
    pictures = sorted((site / "images").iterdir())
    assert len(pictures) > 5
    assert [picture.name for picture in pictures if picture not in shown] == []
    assert [picture.name for picture in pictures if picture.stat().st_size > 100_000] == []


def test_what_text_says_is_not_taken_for_a_tag(pages: dict[Path, Html]) -> None:
    """As <think> of a sentence would be."""
    assert {tag for html in pages.values() for tag in html.tags} - TAGS == set()


def test_formulas_are_drawn(pages: dict[Path, Html]) -> None:
    (shift,) = [html for page, html in pages.items() if page.name == "router-shift.html"]
    assert shift.formulas > 10
    left = [str(page) for page, html in pages.items() if re.search(r"\\(?:frac|sum|gamma|exp|mathrm|\(|\[)", html.text)]
    assert left == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site as a server on loopback has it."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_a_browser_finds_a_page_by_a_word_and_asks_nobody_else(address: str, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        page.resize(1200, 800)
        page.open(f"{address}index.html")
        page.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        page.type("max_staleness")
        page.wait("document.querySelectorAll('.md-search-result__link').length > 0")
        page.open(f"{address}explanation/router-shift.html")
        page.wait("document.querySelector('math').getBoundingClientRect().height > 0")
        page.resize(390, 800)  # a phone's: what is wider scrolls by itself
        page.wait("[...document.querySelectorAll('.formula')].some((e) => e.scrollWidth > e.clientWidth)")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        hosts = page.evaluate("performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
        assert set(hosts) == {address.removeprefix("http://").strip("/")}
        assert page.errors == []
