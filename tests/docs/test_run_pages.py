"""The commands of the pages about reading a run do so with the folder of a run."""

from pathlib import Path

import pytest

from services.cli.main import main
from tests.support.pages import ROOT
from tests.support.run_records import evaluation, step, write_run, write_samples
from tests.support.shell import called, shell, texts_of

READING = ("report", "rollouts", "runs")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run `countdown` below runs/ of the working folder, with a sample of each kind that pages ask for."""
    monkeypatch.chdir(tmp_path)
    folder = write_run(
        tmp_path / "runs/countdown", [step(i) for i in range(1, 42)], [evaluation(0, 0.3), evaluation(40, 0.4)]
    )
    write_samples(folder, (39, 40), each=4, problem="row-17")
    write_samples(folder, (41,), each=4, outcome="stale")
    return folder


@pytest.mark.parametrize(("name", "expected"), [("how-to/read-rollouts.md", 6), ("tutorials/read-a-run.md", 2)])
def test_what_the_page_types_works(name: str, expected: int, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [words for words in called(shell(ROOT / "docs" / name), "routershift") if words[0] in READING]
    assert len(commands) == expected
    for words in commands:
        arguments = [str(run) if word.startswith("RUN") else word for word in words]
        assert main(arguments) == 0, words
        printed = capsys.readouterr()
        assert printed.out.strip(), words
        assert printed.err == "", words


def test_samples_are_read_from_python(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = texts_of(ROOT / "docs/how-to/read-rollouts.md", "python")
    exec(compile(program.replace("< 0.5", "< 2"), "read-rollouts.md", "exec"), {})  # noqa: S102  our own page
    assert capsys.readouterr().out.count(" t0") == 12
