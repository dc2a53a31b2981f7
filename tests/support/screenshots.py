"""Pictures of the pages for docs/images: `python -m tests.support.screenshots RUN [PICTURE ...]`.

RUN is the folder of a run that has samples, as the demo leaves it. Without PICTURE all are taken but `drift`, which is
of a deep model, and those of the site, which are to look at.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from services.cli.pages import report
from services.cli.pages.server import ViewServer
from tests.support.browser import Page, browser

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
WIDE, PHONE = (1200, 820), (390, 760)
_COLOURS = 256  # as many as these pages need: half of the bytes
_DRAWN = "document.querySelector('#plot-reward path') !== null"


@dataclass(frozen=True, slots=True)
class Picture:
    """One file in docs/images, of one kind of page."""

    take: Callable[[Page], None]
    size: tuple[int, int]
    scheme: str = "light"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.screenshots", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help=", ".join([*REPORT, *VIEW, *SITE]))
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to write them; default: docs/images")
    arguments = parser.parse_intermixed_args()
    wanted = set(arguments.pictures) or {*REPORT, *VIEW} - {"drift"}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, browser(Path(scratch) / "profile") as page:
        for pictures, address in ((REPORT, report_of), (VIEW, view_of), (SITE, site_of)):
            if chosen := {name: picture for name, picture in pictures.items() if name in wanted}:
                with address(arguments.run, Path(scratch)) as url:
                    for name, picture in chosen.items():
                        take(page, url, picture, arguments.folder / f"{name}.png")
        assert page.errors == []


def take(page: Page, url: str, picture: Picture, file: Path) -> None:
    page.resize(*picture.size)
    page.scheme(picture.scheme)
    page.open(url)
    picture.take(page)
    page.screenshot(file)
    Image.open(file).convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


@contextmanager
def report_of(run: Path, scratch: Path) -> Iterator[str]:
    file = scratch / "report.html"
    file.write_text(report.report([run]), encoding="utf-8")
    yield file.as_uri()


@contextmanager
def view_of(run: Path, scratch: Path) -> Iterator[str]:
    with ViewServer(run, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


@contextmanager
def site_of(run: Path, scratch: Path) -> Iterator[str]:
    folder = scratch / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder], cwd=ROOT, check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def head(page: Page) -> None:
    """The head of the report, with the cursor at the last evaluation where there is room for one."""
    page.wait(_DRAWN)
    if page.evaluate("innerWidth") > PHONE[0]:
        page.hover("#plot-accuracy_0 .stage", x=0.985)
    page.evaluate("scrollTo(0, 0)")


def drift(page: Page) -> None:
    page.wait(_DRAWN)
    page.evaluate("document.getElementById('drift').scrollIntoView()")


def samples(page: Page, at: str = "#samples", block: str = "start") -> None:
    """The sample whose routers moved most, with the cursor on its token that moved most."""
    page.wait("document.querySelectorAll('.rows .open').length > 0")
    page.evaluate("sampleTable.change({ sort: 'gamma_min', descending: 'no', outcome: 'trained', limit: 6 })")
    page.wait("document.querySelector('.rows th[data-key=gamma_min]').ariaSort === 'ascending'")
    page.click(".rows .open")
    page.wait("document.querySelector('.tokens') !== null")
    page.evaluate(f"document.querySelector('{at}').scrollIntoView({{ block: '{block}' }})")
    page.mouse("mouseMoved", (1, 1))  # or what lies under it now takes the cursor's place
    alpha = "Number(/[\\d.]+(?=\\))/.exec(s.style.backgroundColor) ?? 0)"
    page.evaluate(
        f"((spans) => spans.reduce((best, s) => ({alpha} > {alpha.replace('s.style', 'best.style')} ? s : best))"
        ".dispatchEvent(new PointerEvent('pointerover', { bubbles: true })))"
        "([...document.querySelectorAll('.tokens span')])"
    )


def response(page: Page) -> None:
    """The same from the response on, for a narrow screen."""
    samples(page, ".tokens", "center")


def nothing(page: Page) -> None:
    """The page as it opens."""


REPORT = {
    "report": Picture(head, WIDE),
    "report-dark": Picture(head, WIDE, "dark"),
    "report-phone": Picture(head, PHONE),
    "drift": Picture(drift, (1200, 800)),
}
VIEW = {
    "samples": Picture(samples, (1200, 960), "dark"),
    "samples-light": Picture(samples, (1200, 960)),
    "samples-phone": Picture(response, PHONE),
}
SITE = {
    "site": Picture(nothing, (1280, 900)),
    "site-dark": Picture(nothing, (1280, 900), "dark"),
    "site-phone": Picture(nothing, PHONE),
}


if __name__ == "__main__":
    main()
