"""How a service's process ends: the code that a supervisor goes by, one line, and the stacks of a wedge."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Begin = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def begin(redis_url: str, tmp_path: Path) -> Iterator[Begin]:
    """Starts the service that ends in a given way; none is left."""
    started = []

    def one(way: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.service_process", redis_url, str(tmp_path), way]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.communicate()


def logged(folder: Path) -> list[dict[str, Any]]:
    log = folder / "odd/logs/odd.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


@pytest.mark.parametrize(
    ("way", "code", "line"),
    [
        ("PreconditionError", 2, "routershift odd: this way"),
        ("CorruptDataError", 2, "routershift odd: this way"),
        ("UnavailableError", 1, "routershift odd: this way"),
        ("DeadlineError", 1, "routershift odd: this way"),
        ("crash", 1, "odd crashed: RuntimeError: one: two"),
    ],
)
def test_the_exit_code_says_whether_a_restart_may_help(begin: Begin, way: str, code: int, line: str) -> None:
    process = begin(way)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    (said,) = err.splitlines()
    assert line in " ".join(said.split())


@pytest.mark.parametrize(
    ("way", "why", "where"),
    [
        ("work", "the event loop stood still for 1 s; raise odd.watchdog_seconds", "in work"),
        ("start", "the start took longer than 1 s; raise odd.start_seconds", "concurrent/futures/thread.py"),
        ("close", "the end took longer than 1 s; raise odd.watchdog_seconds", "in select"),
    ],
)
def test_a_wedge_is_a_crash_that_leaves_its_stacks(
    begin: Begin, tmp_path: Path, way: str, why: str, where: str
) -> None:
    process = begin(way)
    process.communicate(timeout=60)
    assert process.returncode == 1
    last = logged(tmp_path)[-1]
    assert last["message"].startswith(why)
    assert any(where in line for line in last["stacks"])


def test_a_process_that_was_stopped_is_no_wedge(begin: Begin, tmp_path: Path) -> None:
    process = begin("stopped")
    while not any("serves gRPC" in line["message"] for line in logged(tmp_path)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert logged(tmp_path)[-1]["message"] == "odd drained"


def test_work_that_does_not_drain_names_the_setting(begin: Begin, tmp_path: Path) -> None:
    process = begin("drain")
    while not any("serves gRPC" in line["message"] for line in logged(tmp_path)):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "did not finish within odd.drain_seconds = 0.5; it will be redelivered; raise that" in err
