"""The page of the stability bench, of the runs that the repository keeps, in a browser."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands.bench import REPOSITORY, bench
from tests.support.browser import CHROMIUM, MISSING, browser


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What the bench prints of the runs in the repository, and the page of them."""
    kept = REPOSITORY / "tests" / "bench" / "results" / "stability-headline.jsonl"
    path = tmp_path_factory.mktemp("study") / "page.html"
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        bench("stability", ["--json", "--seeds", "3", "--processes", "1", "--runs", str(kept), "--page", str(path)])
    assert "15 runs, 15 of them there already" in said.getvalue()
    return json.loads(printed.getvalue()), path


def test_kept_runs_are_found_again(results: tuple[dict[str, Any], Path]) -> None:
    """By whoever clones the repository: no run of the first result is made again."""
    assert results[0]["commits"] == ["60cee75d"]


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_shows_every_seed_and_every_difference(results: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    found, path = results
    (condition,) = found["conditions"].values()
    with browser(tmp_path) as page:
        page.open(path.as_uri())
        page.wait("document.querySelector('#plot-pass_at_1-0 path') !== null")
        assert page.errors == []
        assert page.texts(".run[data-run]") == list(condition["arms"])
        drawn = page.evaluate("[...document.querySelectorAll('.difference title')].map((e) => e.textContent)")
        final = condition["differences"]["gmpo+none - grpo+none"]["final"]
        assert f"gmpo+none - grpo+none: {final['mean']:+.3f} [{final['low']:+.3f}, {final['high']:+.3f}]" in drawn
        assert len(drawn) == len(condition["differences"])
        curves = "document.querySelectorAll('#plot-pass_at_1-0 path[fill=none]').length"
        assert page.evaluate(curves) == 15
        page.click(".run[data-run='1'] button")
        assert page.evaluate(curves) == 12
        rows = page.texts("#runs table:first-of-type tbody tr")
        assert rows[0].split()[:3] == ["grpo+none", "0", "0.197"]
        assert sum(row.startswith(tuple(condition["arms"])) for row in rows) == 15
