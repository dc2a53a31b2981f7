"""Dashboards drawn without Grafana: asked of a Prometheus whose series are written here."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.grafana import draw
from deploy.grafana.draw import Board, Window, drawn, without_data
from deploy.grafana.write import FOLDER
from tests.support.browser import browser
from tests.support.containers import until
from tests.support.torchrun import free_port

START = 1_790_000_000
SERIES = [
    'routershift_learner_step{{job="learner",namespace="lab",run="{run}"}} {step}',
    'routershift_learner_layer_router_shift{{job="learner",run="{run}",layer="0"}} 0.{step:02}',
    'routershift_learner_layer_router_shift{{job="learner",run="{run}",layer="11"}} 0.5',
    'routershift_redis_memory_bytes{{job="curriculum",run="{run}"}} 250000000',
    'routershift_learner_gamma_mean{{job="learner",run="{run}"}} NaN',
]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one that holds ten minutes of two runs."""
    for command in ("prometheus", "promtool"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is missing: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    lines = [
        f"{series.format(run=run, step=step)} {START + 15 * step}"
        for series in SERIES
        for run in ("alice", "bob")
        for step in range(40)
    ]
    (folder / "series").write_text("\n".join([*lines, "# EOF", ""]))
    (folder / "prometheus.yml").write_text("")
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "series", folder / "data"],
        check=True,
        capture_output=True,
    )
    url = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address={url}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        fetch = draw.over_http(f"http://{url}")

        def answers() -> bool:
            try:
                return bool(fetch("/api/v1/query?query=1")["status"] == "success")
            except OSError:
                return False

        until("prometheus answers", answers, 60)
        yield f"http://{url}"
    finally:
        process.kill()
        process.wait()


def window() -> Window:
    return Window(START, START + 600)


def test_a_board_has_the_curves_of_every_run_and_says_what_has_no_data(prometheus: str) -> None:
    board = Board.read(FOLDER / "fleet.json")
    answers = board.answers(draw.over_http(prometheus), window())
    (step,) = [a for a in answers if a.panel["title"] == "Step"]
    assert {curve.labels["run"]: curve.points[-1][1] for curve in step.curves} == {"alice": 39, "bob": 39}
    empty = dict(without_data(answers))
    assert "Step: {{namespace}} {{run}}" not in empty
    assert empty["Reward: {{namespace}} {{run}}"] == "namespace_run:routershift_learner_reward:avg15m"


def test_not_a_number_is_no_data(prometheus: str) -> None:
    answers = Board.read(FOLDER / "routers.json").answers(draw.over_http(prometheus), window())
    assert "gamma: mean" in dict(without_data(answers))


def test_a_page_draws_curves_layers_and_units(prometheus: str, tmp_path: Path) -> None:
    pages = {}
    for name in ("data-plane", "fleet", "routers"):
        board = Board.read(FOLDER / f"{name}.json")
        pages[name] = tmp_path / f"{name}.html"
        pages[name].write_text(drawn(board, board.answers(draw.over_http(prometheus), window()), window()))
    with browser(tmp_path / "profile") as page:
        page.open(pages["fleet"].as_uri())
        page.wait("document.querySelectorAll('figure path').length >= 2")
        assert page.texts("figure h3") == ["Step"]
        assert page.texts(".run") == ["alice", "bob"]
        page.open(pages["data-plane"].as_uri())
        page.wait("document.querySelector('figure path') !== null")
        assert page.texts("figure h3") == ["Redis memoryMegabytes"]
        page.open(pages["routers"].as_uri())
        page.wait("document.querySelector('figure') !== null")
        assert page.texts("figure h3") == ["Router shift by layer"]
        assert page.errors == []


def test_a_query_that_is_refused_is_said(prometheus: str) -> None:
    with pytest.raises(ValueError, match="parse error"):
        draw.ask(draw.over_http(prometheus), "sum(", window())


def test_the_command_writes_every_board_and_fails_where_one_is_empty(
    prometheus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw.main(["--prometheus", prometheus, "--out", str(tmp_path)]) == 1
    assert {path.stem for path in tmp_path.iterdir()} == {path.stem for path in FOLDER.iterdir()}
    assert "without data: Loss: " in capsys.readouterr().err


def test_a_prometheus_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        draw.main(["--prometheus", f"http://127.0.0.1:{free_port()}", "--out", str(tmp_path)])
    assert "--prometheus http://127.0.0.1" in capsys.readouterr().err
