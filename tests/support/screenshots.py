"""Pictures of the pages for docs/images: `python -m tests.support.screenshots RUN`."""

import sys
import tempfile
import threading
from pathlib import Path

from services.cli.pages import report
from services.cli.pages.server import ViewServer
from tests.support.browser import Page, browser

IMAGES = Path(__file__).parents[2] / "docs/images"
_DRAWN = "document.querySelector('#plot-reward path') !== null"


def main(run: Path) -> None:
    """Takes them of a run that has samples."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as page:
        of_report(page, run, Path(folder) / "report.html")
        with ViewServer(run, "127.0.0.1", 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            of_samples(page, server.url)
            server.shutdown()
        assert page.errors == []


def of_report(page: Page, run: Path, file: Path) -> None:
    """The head of the report, also as it is on a phone, and its heat maps."""
    file.write_text(report.report([run]), encoding="utf-8")
    page.resize(1200, 820)
    page.scheme("light")
    page.open(file.as_uri())
    page.wait(_DRAWN)
    page.hover("#plot-accuracy_0 .stage", x=0.985)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(IMAGES / "report.png")
    page.resize(1200, 800)
    page.evaluate("document.getElementById('drift').scrollIntoView()")
    page.screenshot(IMAGES / "drift.png")
    page.resize(390, 760)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(IMAGES / "report-phone.png")


def of_samples(page: Page, url: str) -> None:
    """The sample whose routers moved most, in dark, with the cursor on its token that moved most."""
    page.resize(1200, 960)
    page.scheme("dark")
    page.open(url)
    page.wait("document.querySelectorAll('.rows .open').length > 0")
    page.evaluate("sampleTable.change({ sort: 'gamma_min', descending: 'no', outcome: 'trained', limit: 6 })")
    page.wait("document.querySelector('.rows th[data-key=gamma_min]').ariaSort === 'ascending'")
    page.click(".rows .open")
    page.wait("document.querySelector('.tokens') !== null")
    page.evaluate("document.getElementById('samples').scrollIntoView()")
    alpha = "Number(/[\\d.]+(?=\\))/.exec(s.style.backgroundColor) ?? 0)"
    page.evaluate(
        f"((spans) => spans.reduce((best, s) => ({alpha} > {alpha.replace('s.style', 'best.style')} ? s : best))"
        ".dispatchEvent(new PointerEvent('pointerover', { bubbles: true })))"
        "([...document.querySelectorAll('.tokens span')])"
    )
    page.screenshot(IMAGES / "samples.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
