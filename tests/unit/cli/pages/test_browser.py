"""The pages in a browser, clicked as people do.

Long because every control of the report and of the live page has its click.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from routershift.trajectory import Role, Segment
from services.cli.pages import report
from services.cli.pages.server import ViewServer
from shared.tracking import records
from shared.tracking.samples import SampleWriter
from tests.support.browser import CHROMIUM, MISSING, Page, browser
from tests.support.run_records import evaluation, sample, step, write_run, write_samples

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
HOSTILE = "</script><img src=x onerror='window.broken = 1'>"
TIP = "#plot-reward .tip"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """A tab in which nothing goes wrong: no script throws, nothing is loaded that may not be."""
    tab.errors.clear()
    tab.resize(1280, 900)
    tab.scheme("light")
    yield tab
    assert tab.errors == []
    assert tab.evaluate("window.broken") is None
    tab.open("about:blank")  # so that it does not ask a server that has gone


def make_run(folder: Path, steps: int = 20, layers: int = 3) -> Path:
    evaluations = [
        evaluation(version, 0.3 + version / 1000, oldest_version=version, newest_version=version + 1)
        for version in range(0, steps + 1, 10)
    ]
    return write_run(folder, [step(i, layers) for i in range(1, steps + 1)], evaluations)


def show(page: Page, *folders: Path) -> None:
    path = folders[0] / "shown.html"
    path.write_text(report.report(folders), encoding="utf-8")
    page.open(path.as_uri())
    page.wait("document.querySelector('#plot-reward path') !== null")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ViewServer]:
    folder = make_run(tmp_path / "run")
    write_samples(folder, range(1, 11), each=8)
    with ViewServer(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def choose(page: Page, selector: str, value: str) -> None:
    """Sets a control as its reader does."""
    page.evaluate(
        f"((e) => {{ e.value = {json.dumps(value)}; for (const kind of ['input', 'change']) "
        f"e.dispatchEvent(new Event(kind)); }})(document.querySelector({json.dumps(selector)}))"
    )


def rows_are(page: Page, condition: str) -> None:
    """Waits until the cells of the table's rows, `rows`, are as they should be."""
    cells = "[...document.querySelectorAll('.rows tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"
    page.wait(f"((rows) => {condition})({cells})")


def test_the_cursor_reads_values_and_shows_in_every_plot(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    page.hover("#plot-reward .stage", x=0.99)
    assert page.text(TIP).split("\n") == ["step 20", "reward_mean", f"{step(20)['reward_mean']:.4g}"]
    plots = "[...document.querySelectorAll('.plot')]"
    assert page.evaluate(f"{plots}.every((p) => p.querySelector('line[stroke-dasharray=\"2 2\"]') !== null)")
    page.hover("h2")
    page.wait("document.querySelector('#plot-reward .tip').hidden")


def test_the_accuracy_has_its_interval_and_who_sampled(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    page.hover("#plot-accuracy_0 .stage", x=0.5)
    shown = page.text("#plot-accuracy_0 .tip")
    assert "version 10" in shown
    assert "0.31 (0." in shown
    assert "sampled by versions 10 to 11" in shown


def test_a_heat_map_names_layer_and_step(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    page.hover("#plot-expert_overlap_0 .stage", x=0.99, y=0.2)
    lines = page.text("#plot-expert_overlap_0 .tip").split("\n")
    assert lines[:3] == ["step 20", "layer 2", f"{step(20)['expert_overlap_layer_2']:.4g}"]
    painted = (
        "((c) => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        "(document.querySelector('#plot-expert_overlap_0 .stage canvas'))"
    )
    assert page.evaluate(painted) > 10


def test_a_drag_zooms_every_plot_and_a_double_click_undoes_it(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path, steps=100))
    labels = "[...document.querySelectorAll('#plot-loss text, #plot-entropy text')].map((t) => t.textContent)"
    assert "100" in page.evaluate(labels)
    page.drag("#plot-reward .stage", 0.3, 0.5)
    page.wait("!document.querySelector('.reset-zoom').hidden")
    assert "100" not in page.evaluate(labels)
    page.click(".reset-zoom")
    assert "100" in page.evaluate(labels)
    page.drag("#plot-expert_overlap_0 .stage", 0.3, 0.5)
    assert "100" not in page.evaluate(labels)
    page.evaluate("document.querySelector('#plot-reward .stage').dispatchEvent(new MouseEvent('dblclick'))")
    assert "100" in page.evaluate(labels)


def test_the_keyboard_does_what_the_mouse_does(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    page.evaluate("document.querySelector('#plot-reward .stage').focus()")
    for key, expected in (("End", "step 20"), ("ArrowLeft", "step 19"), ("Home", "step 1"), ("ArrowRight", "step 2")):
        page.key(key)
        assert page.text(TIP).startswith(f"{expected}\n")


def test_every_plot_has_its_table(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    assert page.evaluate("document.querySelectorAll('.plot').length") > 10
    page.evaluate("document.querySelectorAll('.plot details').forEach((d) => { d.open = true; })")
    page.wait("[...document.querySelectorAll('.plot')].every((p) => p.querySelectorAll('tbody tr').length > 0)")
    assert page.texts("#plot-reward td")[-2:] == ["20", f"{step(20)['reward_mean']:.4g}"]
    assert page.texts("#plot-accuracy_0 tr:last-child td")[-1] == "sampled by versions 20 to 21"
    assert page.texts("#plot-expert_overlap_0 th") == ["step", "layer 0", "layer 1", "layer 2"]


def test_a_curve_is_hidden_by_its_name_and_smoothed(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    curves = "document.querySelectorAll('#plot-ratio g path').length"
    before = page.evaluate(curves)
    page.click("#plot-ratio .legend button")
    assert page.evaluate(curves) == before - 1
    page.click("#plot-ratio .legend button")
    assert page.evaluate(curves) == before
    path = "[...document.querySelectorAll('#plot-reward g path')].at(-1).getAttribute('d')"
    rough = page.evaluate(path)
    choose(page, "#smoothing", "0.9")
    assert page.evaluate(path) != rough


def test_runs_are_overlaid_and_hidden_together(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path / "one"), make_run(tmp_path / "two", steps=30))
    page.hover("#plot-reward .stage", x=0.99)
    assert page.text(TIP).startswith("step 30\nreward_mean · two\n")
    page.click(".top .run[data-run='1'] button")
    page.hover("#plot-reward .stage", x=0.99)
    assert "two" not in page.text(TIP)
    assert page.evaluate("document.querySelectorAll('#drift .plot').length") == 2


def test_light_and_dark(page: Page, tmp_path: Path) -> None:
    show(page, make_run(tmp_path))
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.scheme("dark")
    dark = page.evaluate(colour)
    assert dark != light
    page.click("#theme")
    assert page.evaluate(colour) == light
    page.evaluate("window.isOld = true; location.reload()")
    page.wait("!window.isOld && document.querySelector('#plot-reward path') !== null")
    assert page.evaluate(colour) == light  # it is remembered
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_of_a_narrow_screen(page: Page, tmp_path: Path, width: int) -> None:
    folder = make_run(tmp_path, layers=40)
    write_samples(folder, (1, 2), each=4)
    page.resize(width, 800)
    show(page, folder)
    page.click(".rows .open")
    page.wait("document.querySelector('.tokens') !== null")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.querySelectorAll('dt')].every((e) => e.offsetLeft < e.nextSibling.offsetLeft)")


def test_what_a_model_wrote_stays_text(page: Page, tmp_path: Path) -> None:
    folder = make_run(tmp_path / HOSTILE.replace("/", ""))
    write_run(folder, [step(1, seconds={HOSTILE: 1.0})], [evaluation(0, 0.5, set=HOSTILE)], summary={HOSTILE: HOSTILE})
    made = sample(1, 0)
    hostile = replace(
        made, prompt=HOSTILE, response=HOSTILE, message=HOSTILE, problem=HOSTILE, verifier=HOSTILE, outcome=HOSTILE,
        trajectory=f"{HOSTILE}/0/0", tokens=replace(made.tokens, pieces=(HOSTILE, *made.tokens.pieces[1:])),
    )  # fmt: skip
    SampleWriter(folder, 1 << 30).add([hostile])
    show(page, folder)
    page.click(".rows .open")
    page.wait("document.querySelector('.tokens') !== null")
    page.hover("[data-token='0']")
    assert HOSTILE in page.text(".token-tip").replace('\\"', '"')
    assert HOSTILE in page.text(".detail")
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_a_report_has_some_samples_that_filter_and_open(page: Page, tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write_samples(folder, range(1, 5), each=4)
    show(page, folder)
    page.wait("document.querySelectorAll('.rows tbody tr').length === 12")
    page.evaluate("document.querySelector('[data-filter=correct]').scrollIntoView()")
    choose(page, "[data-filter='correct']", "yes")
    rows_are(page, "rows.length > 0 && rows.length < 12 && rows.every((r) => r[3] === '1')")
    page.click(".rows .open")
    page.wait("document.querySelectorAll('.tokens span').length === 12")


def test_the_table_filters_sorts_and_turns_its_pages(page: Page, served: ViewServer) -> None:
    page.open(served.url)
    rows_are(page, "rows.length === 25 && rows[0][0] === '10'")
    page.click("[data-part='next']")
    rows_are(page, "rows.length === 25 && rows[0][0] === '7'")
    assert page.text("[data-part='count']") == "26 to 50 of 80"
    page.click(".rows th[data-key='gamma_min'] button")
    rows_are(page, "rows.every((r, i) => i === 0 || Number(r[8]) <= Number(rows[i - 1][8]))")
    assert page.evaluate("document.querySelector('th[data-key=gamma_min]').ariaSort") == "descending"
    page.click(".rows th[data-key='gamma_min'] button")
    rows_are(page, "rows.every((r, i) => i === 0 || Number(r[8]) >= Number(rows[i - 1][8]))")
    page.click("[data-filter='text']")
    page.type("row 3")
    rows_are(page, "rows.length === 10 && rows.every((r) => r[9].startsWith('3,'))")
    assert page.text("[data-part='count']") == "1 to 10 of 10 (80 kept)"


def test_a_response_is_coloured_by_what_is_chosen(page: Page, served: ViewServer) -> None:
    page.open(served.url)
    page.wait("document.querySelectorAll('.rows .open').length === 25")
    page.click(".rows tr:nth-child(5) .open")
    page.wait("document.querySelectorAll('.tokens span').length === 12")
    background = "[...document.querySelectorAll('.tokens span')].map((s) => s.style.backgroundColor)"
    seen = {}
    for name in ("gamma", "log_ratio", "versions", "surprise", "entropy"):
        choose(page, ".colouring", name)
        seen[name] = page.evaluate(background)
        assert page.texts(".token-scale span")
    assert len({json.dumps(colours) for colours in seen.values()}) == 5
    assert len(set(seen["versions"])) == 2  # six tokens each
    assert seen["versions"][5] != seen["versions"][6]
    page.hover("[data-token='5']")
    shown = page.text(".token-tip")
    assert "drift by layer; most in layer" in shown
    assert page.evaluate("document.querySelectorAll('.token-tip rect').length") == 3
    page.evaluate("document.querySelector('.tokens').focus()")
    page.key("ArrowRight")
    assert "token 6" in page.text(".token-tip")
    page.evaluate("document.querySelector('.token-view details').open = true")
    page.wait("document.querySelectorAll('.token-view tbody tr').length === 12")
    page.click(".detail .tools button")
    rows_are(page, "rows.length === 4")


def test_what_others_said_stands_between_the_tokens(page: Page, served: ViewServer) -> None:
    segments = (
        Segment(Role.ASSISTANT, 5, True, reward=0.25),
        Segment(Role.TOOL, 2, False, f"42{HOSTILE}"),
        Segment(Role.ASSISTANT, 7, True),
    )
    SampleWriter(served.folder, 1 << 30).add([replace(sample(30, 0), segments=segments)])
    page.open(served.url)
    rows_are(page, "rows[0][0] === '30'")
    page.click(".rows .open")
    page.wait("document.querySelectorAll('.tokens span').length === 12")
    places = page.evaluate("[...document.querySelector('.tokens').children].map((c) => c.dataset.token ?? c.innerText)")
    assert places == ["0", "1", "2", "3", "4", "earned 0.25", f"tool 42{HOSTILE}", "5", "6", "7", "8", "9", "10", "11"]
    page.hover("[data-token='5']")
    assert "token 5" in page.text(".token-tip")


def test_a_page_that_is_open_follows_its_run(page: Page, served: ViewServer) -> None:
    page.open(served.url)
    page.wait("document.getElementById('live').innerText === 'live'")
    records.append(served.folder / records.LEARNER, step(21, surprise=1.0))
    SampleWriter(served.folder, 1 << 30).add([sample(21, 0)])
    rows_are(page, "rows[0][0] === '21'")
    page.hover("#plot-reward .stage", x=0.99)
    page.wait("document.querySelector('#plot-reward .tip').innerText.startsWith('step 21')")
    page.wait("document.getElementById('plot-other_surprise') !== null")
    assert "168" in page.text("#dropped-table")  # 8 a step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(tab: Page, tmp_path: Path, number: signal.Signals) -> None:
    """Also where it runs in the background of a shell, which ignores SIGINT there."""
    view = [sys.executable, "-m", "services.cli.main", "view", str(make_run(tmp_path)), "--port", "0"]
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *view]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        url = serving.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        tab.open(url)
        tab.wait("document.getElementById('live').innerText === 'live'")
        serving.send_signal(number)
        try:
            assert serving.wait(timeout=60) == 0
        finally:
            serving.kill()
    tab.wait("document.getElementById('live').innerText === 'not connected'")
    tab.open("about:blank")
