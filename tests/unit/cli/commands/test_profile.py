"""`routershift profile` looks into a real process with the real py-spy."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.endpoints import Addresses, Endpoints
from services.cli.main import main

_PROCESS = """
import socket, sys, threading
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)

def matrix_product():
    while True:
        sum(range(1000))

def wait_for_work():
    threading.Event().wait()

globals()[sys.argv[1]]()
"""


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A run whose learner computes, or what the test says, and whose reward has ended."""
    does = getattr(request, "param", "matrix_product")
    process = subprocess.Popen([sys.executable, "-c", _PROCESS, does], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    computes, ended = f"127.0.0.1:{process.stdout.readline().strip()}", "127.0.0.1:1"
    services = {"learner": Addresses(grpc=computes, metrics=""), "reward": Addresses(grpc=ended, metrics="")}
    Endpoints(run="test", redis="", services=services).write(tmp_path)
    yield tmp_path
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_flame_graph_names_what_takes_the_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(folder), "learner", "--seconds", "1"]) == 0
    shown = Path(capsys.readouterr().out.strip())
    assert shown.parent == folder / "profiles"
    assert shown.name.startswith("learner-")
    assert "matrix_product" in shown.read_text()


def test_the_form_and_the_file_are_as_asked(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "made/stacks.txt"
    assert main(["profile", str(folder), "learner", "--seconds", "1", "--format", "raw", "--output", str(file)]) == 0
    assert "matrix_product" in file.read_text()


@pytest.mark.parametrize("folder", ["wait_for_work"], indirect=True)
def test_a_service_that_waits_is_no_failure_of_py_spy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # On a busy machine py-spy may still see the end of its start.
    assert any(main(["profile", str(folder), "learner", "--seconds", "1"]) == 2 for _ in range(10))
    assert "learner computed nothing within the 1 s of --seconds; take more, or --idle" in capsys.readouterr().err
    assert main(["profile", str(folder), "learner", "--seconds", "1", "--idle"]) == 0
    assert "wait_for_work" in Path(capsys.readouterr().out.strip()).read_text()


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("reward", "no process of yours listens at 127.0.0.1:1, where reward did"),
        ("generation", "run test has no service generation; it has learner, reward"),
    ],
)
def test_a_service_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str], service: str, said: str) -> None:
    assert main(["profile", str(folder), service]) != 0
    assert said in capsys.readouterr().err


def test_what_cannot_be_written_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "taken").mkdir()
    assert main(["profile", str(folder), "learner", "--seconds", "1", "--output", str(folder / "taken")]) == 2
    assert "py-spy cannot look into learner" in capsys.readouterr().err


def test_a_run_without_services_and_a_rate_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(tmp_path), "learner"]) == 2
    assert "endpoints.json does not exist" in capsys.readouterr().err
    assert main(["profile", str(tmp_path), "learner", "--rate", "0"]) == 2
    assert "not a whole number of at least 1" in capsys.readouterr().err


def test_without_py_spy_the_error_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert main(["profile", str(folder), "learner"]) == 2
    assert "routershift[profile]" in capsys.readouterr().err
