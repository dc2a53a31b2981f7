"""What the report makes of the records of one run, and of several."""

import re
from pathlib import Path
from typing import Any

import pytest

from services.cli.main import main
from services.cli.pages import report
from services.cli.pages.answers import answers
from services.cli.pages.run_data import read
from services.cli.pages.sections import sections
from shared.errors import CorruptDataError, PreconditionError
from shared.weights import published
from tests.support.run_records import evaluation, step, write_run

MANY = {"problems": 500, "samples": 2000}
HOSTILE = "</script><img src=x onerror=alert(1)><!--\u2028"


def titles(folder: Path) -> dict[str, list[str]]:
    found = sections([read(folder)], ["run"])
    return {section.id: [figure.title for figure in section.figures] for section in found if section.figures}


def test_the_page_shows_every_evaluation_and_the_best(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="holds no records yet"):
        report.write(tmp_path)
    (tmp_path / "weights" / published.folder_name(20)).mkdir(parents=True)
    last = evaluation(20, 0.75, oldest_version=21, newest_version=27, pass_at_k={"8": 0.875})
    write_run(tmp_path, [step(1), step(2, reference_kl=0.1)], [evaluation(0, 0.25), last], summary={"task": "<count>"})
    text = report.write(tmp_path).read_text(encoding="utf-8")
    for cells in (("version", "pass@1", "pass@2", "pass@4", "pass@8"), ("0.2500", "0.6000", "0.7000", "0.5123")):
        assert [text.index(cell) for cell in cells] == sorted(text.index(cell) for cell in cells)
    row = re.search(r"<tr><td[^>]*>countdown</td><td[^>]*>20</td>.*?</tr>", text, re.DOTALL)
    assert row is not None
    cells_of_20 = re.findall(r"<td[^>]*>([^<]*)</td>", row[0])
    assert cells_of_20 == [
        "countdown", "20", "21-27", "0.7500", "0.4093 to 0.9285", "", "", "0.8750", "0.5123", "0.9000", "8", "32",
    ]  # fmt: skip
    assert f"Best: version 20 in {tmp_path / 'weights' / 'v00000020'}" in text
    assert "&lt;count&gt;" in text


def test_turns_have_a_column_where_some_response_had_more_than_one(tmp_path: Path) -> None:
    write_run(tmp_path, evaluations=[evaluation(0, 0.25, mean_turns=1.0), evaluation(20, 0.5, mean_turns=2.125)])
    text = report.write(tmp_path).read_text(encoding="utf-8")
    row = re.search(r"<tr><td[^>]*>countdown</td><td[^>]*>20</td>.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row[0])[-4:] == ["0.9000", "2.12", "8", "32"]
    assert text.index(">valid<") < text.index(">turns<") < text.index(">problems<")


def test_the_main_set_decides_which_version_is_the_best_and_each_set_has_its_rows(tmp_path: Path) -> None:
    other = {"set": "hard", "main": False, "pass_at_k": {}, "greedy_accuracy": None}
    write_run(
        tmp_path,
        evaluations=[
            evaluation(0, 0.25), evaluation(0, 0.9, **other), evaluation(20, 0.5), evaluation(20, 0.1, **other),
        ],
    )  # fmt: skip
    text = report.write(tmp_path).read_text(encoding="utf-8")
    assert "Best: version 20<" in text
    rows = re.findall(r"<tr><td[^>]*>(\w+)</td><td[^>]*>(\d+)</td>", text)
    assert rows == [("countdown", "0"), ("hard", "0"), ("countdown", "20"), ("hard", "20")]
    assert titles(tmp_path) == {"learning": ["Held-out accuracy: countdown", "Held-out accuracy: hard"]}


def test_a_run_that_has_only_been_evaluated_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path, evaluations=[evaluation(0, 0.25)])
    assert "Best: version 0<" in report.write(tmp_path).read_text(encoding="utf-8")


def test_nothing_that_a_run_wrote_becomes_markup(tmp_path: Path) -> None:
    """Names and texts come from data sets, models and packages of other people."""
    write_run(
        tmp_path / "run",
        [step(1, seconds={HOSTILE: 1.0}, dropped={HOSTILE: 3}) | {HOSTILE: 1.0}],
        [evaluation(0, 0.5, set=HOSTILE)],
        settings={"run": {"model": HOSTILE, HOSTILE: 1}},
        provenance={HOSTILE: HOSTILE},
        summary={HOSTILE: HOSTILE, "trajectories_dropped": {HOSTILE: 2}},
    )
    text = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "onerror=alert(1)&gt;" in text
    assert text.count("</script>") == 2  # its own script and its data
    assert "default-src &#39;none&#39;" in text
    assert "unsafe-inline" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_every_number_of_the_records_is_in_a_figure(tmp_path: Path) -> None:
    write_run(tmp_path, [step(i, surprise=float(i), reference_kl=0.1) for i in range(1, 4)])
    shown = sections([read(tmp_path)], ["run"])
    curves = {
        series.name
        for section in shown
        for figure in section.figures
        if figure.kind == "lines"
        for series in figure.series
    }
    numbers = {
        name for name, value in step(1, surprise=1.0, reference_kl=0.1).items() if isinstance(value, int | float)
    }
    assert numbers - curves - {name for name in numbers if "_layer_" in name} == {
        "step", "tokens", "trajectories", "skipped_updates",
    }  # fmt: skip
    assert curves >= {"wait", "train", "prompts", "rollouts", "scored", "zero_variance", "surprise"}
    assert titles(tmp_path)["drift"] == ["Experts chosen again"]
    assert titles(tmp_path)["load"] == ["Load of the busiest expert"]


def test_updates_that_were_skipped_have_a_figure_where_there_were_any(tmp_path: Path) -> None:
    write_run(tmp_path, [step(1, skipped_updates=1.0)])
    assert "Skipped updates" in titles(tmp_path)["stability"]
    assert answers(read(tmp_path))[0].tone == "bad"


def test_a_heat_map_has_a_row_for_each_layer_in_order(tmp_path: Path) -> None:
    write_run(tmp_path, [step(i, layers=12) for i in range(1, 4)])
    (drift,) = [section for section in sections([read(tmp_path)], ["run"]) if section.id == "drift"]
    (figure,) = drift.figures
    assert figure.kind == "heatmap"
    assert (list(figure.x), list(figure.y)) == ([1, 2, 3], list(range(12)))
    assert figure.z[11][0] == pytest.approx(step(1, layers=12)["expert_overlap_layer_11"], rel=1e-4)
    values = [value for row in figure.z for value in row if value is not None]
    assert len(values) == 36
    assert figure.bounds == (min(values), max(values))


def test_a_long_run_is_thinned_to_what_a_screen_shows(tmp_path: Path) -> None:
    spike = 3333
    write_run(tmp_path, [step(i, grad_norm=100.0 if i == spike else 1.0) for i in range(1, 5001)])
    found = {f.id: f for section in sections([read(tmp_path)], ["run"]) for f in section.figures}
    norm, overlap = found["grad_norm"], found["expert_overlap_0"]
    assert norm.kind == "lines"
    assert overlap.kind == "heatmap"
    (series,) = norm.series
    assert len(series.x) == len(overlap.x) == 600
    assert series.x[-1] == 5000
    assert series.high is not None
    assert max(value for value in series.high if value is not None) == 100.0  # its extremes are not lost
    assert len(report.report([tmp_path])) < 2_000_000


def test_values_that_were_not_finite_leave_gaps(tmp_path: Path) -> None:
    write_run(tmp_path, [step(1, loss=0.5), step(2, loss=float("nan")), step(3, loss=None), step(4, loss=0.25)])
    found = {f.id: f for section in sections([read(tmp_path)], ["run"]) for f in section.figures}
    loss = found["loss"]
    assert loss.kind == "lines"
    assert (list(loss.series[0].x), list(loss.series[0].y)) == ([1, 4], [0.5, 0.25])


@pytest.mark.parametrize(
    ("evaluations", "short", "tone"),
    [
        ([evaluation(0, 0.25, **MANY), evaluation(9, 0.5, **MANY)], "Yes", "good"),
        ([evaluation(0, 0.5, **MANY), evaluation(9, 0.25, **MANY)], "It got worse", "bad"),
        ([evaluation(0, 0.25), evaluation(9, 0.5)], "No change beyond chance", "plain"),
        ([evaluation(0, 0.25)], "Not known yet", "plain"),
    ],
)  # fmt: skip
def test_the_answer_to_did_it_learn(tmp_path: Path, evaluations: list[Any], short: str, tone: str) -> None:
    write_run(tmp_path, evaluations=evaluations)
    (answer,) = answers(read(tmp_path))
    assert (answer.short, answer.tone) == (short, tone)


def test_the_other_answers(tmp_path: Path) -> None:
    write_run(tmp_path, [step(1), step(2)])
    by_section = {answer.section: answer for answer in answers(read(tmp_path))}
    assert by_section["stability"].short == "Nothing stands out"
    assert by_section["time"].short == "Learner idle 25 %"
    assert by_section["dropped"].short == "11 % of trajectories"  # 16 of 16 + 2 * 64
    assert by_section["dropped"].details == "zero_variance 16; trained on 128"
    write_run(tmp_path, [step(i) for i in range(1, 9)] + [step(9, grad_norm=40.0)])
    assert answers(read(tmp_path))[0].short.startswith("Gradient norm jumped ")


def test_a_summary_knows_what_was_dropped_after_the_last_step(tmp_path: Path) -> None:
    summary = {"trajectories_dropped": {"stale": 1, "run_finished": 3}, "trajectories_trained": 4}
    write_run(tmp_path, [step(1)], summary=summary)
    assert answers(read(tmp_path))[-1].details == "run_finished 3, stale 1; trained on 4"


def test_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rate in (("one", 1e-4), ("two", 2e-4)):
        settings = {"run": {"id": name, "steps": 2}, "learner": {"optimizer": {"learning_rate": rate}}}
        made_by = {
            "run": name,
            "settings": settings,
            "environment": {"code": {"commit": f"of {name}", "dirty": False}},
            "starts": [{"time": name}],
        }
        folder = tmp_path / "runs" / name
        write_run(folder, [step(1), step(2)], [evaluation(0, 0.5)], settings=settings, provenance=made_by)
    assert main(["report", "one", "runs/two"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    differing = text[text.index('id="differences"') : text.index('id="settings"')]
    cells = re.findall(r'<td class="\w+">([^<]*)</td>', differing)
    assert cells[:3] == ["learner.optimizer.learning_rate", "0.0001", "0.0002"]
    assert cells[3:] == ["environment.code.commit", "of one", "of two"]
    assert "starts.0.time" in text
    assert main(["report", "one", "two", "--output", "other.html"]) == 0
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == text
    assert main(["report", "one"]) == 0
    assert capsys.readouterr().out.endswith("runs/one/report.html\n")
    assert main(["report", "one", "three"]) == 2


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / seed / "runs" / "first", [step(1)]) for seed in ("a", "b")]
    text = report.report(folders)
    assert "a/runs/first" in text
    assert "b/runs/first" in text


@pytest.mark.parametrize("content", ["[1]", "{", '"text"'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str) -> None:
    write_run(tmp_path, [step(1)])
    (tmp_path / "provenance.json").write_text(content, encoding="utf-8")
    with pytest.raises(CorruptDataError, match=r"provenance\.json"):
        report.write(tmp_path)


def test_a_record_of_a_later_version_is_refused_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [step(1)], [evaluation(0, 0.5)], provenance={"schema": 99})
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "provenance.json has schema 99, this version reads 1; use the one that wrote it" in capsys.readouterr().err
