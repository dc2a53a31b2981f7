"""`routershift status`: for people, for machines, and again and again; on a real Redis."""

import asyncio
import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.streams.progress import Progress
from shared.streams.run import FINISHED, TRAINING, Run
from tests.support import cli
from tests.support.runs import a_run_of_every_kind

Status = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
async def started(run: Run) -> Run:
    await a_run_of_every_kind(run)
    await run.report_progress(Progress(step=7, version=7, total_steps=100, phase=TRAINING, accuracy=0.25))
    return run


@pytest.fixture
def status(redis_url: str, tmp_path: Path) -> Status:
    return lambda *arguments: cli.run("status", *arguments, cwd=tmp_path, changes={"REDIS_URL": redis_url})


async def test_people_get_a_table_and_machines_get_numbers(started: Run, status: Status) -> None:
    name = started.keys.run
    ran = await asyncio.to_thread(status, name)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0].split() == ["run", f"{name}:", "training"]
    ran = await asyncio.to_thread(status, name, "--json")
    found = json.loads(ran.stdout)
    assert (found["step"], found["accuracy"], found["ledger"]["trained"], found["live"]) == (7, 0.25, 4, True)
    assert found["streams"]["scored"]["entries"] == 1
    assert found["ledger"]["stages"] == {"prompted": 4, "generated": 4, "scored": 4}
    assert (found["pace"], found["remaining_seconds"], found["problems"]) == (None, None, [])


@pytest.mark.parametrize("every", ["0", "-1", "nan", "inf"])
def test_every_is_a_number_of_seconds(status: Status, every: str) -> None:
    ran = status("any", "--watch", "--every", every)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"routershift: --every is {every}; expected 0.1 to 3600 seconds")


def test_a_run_that_is_not_there(status: Status) -> None:
    for arguments in ([], ["--json"], ["--watch"]):
        ran = status("nobody", *arguments)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "run 'nobody' is not in this Redis" in ran.stderr


def watching(name: str, redis_url: str, folder: Path, stdout: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*cli.ROUTERSHIFT, "status", name, "--watch", "--every", "0.1"],
        cwd=folder,
        env=cli.environment(REDIS_URL=redis_url, TERM="xterm"),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_watching_on_a_pipe_is_blocks_until_the_run_is_finished(
    started: Run, redis_url: str, tmp_path: Path
) -> None:
    process = watching(started.keys.run, redis_url, tmp_path, subprocess.PIPE)
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line.count(":") == 2, "the time"
    await started.report_progress(Progress(phase=FINISHED, final_evaluation=7))
    out, err = await asyncio.to_thread(process.communicate, timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "\x1b" not in out
    last = out.rstrip().rpartition("\n\n")[2].splitlines()
    assert last[1].endswith(": finished")


async def test_watching_on_a_terminal_redraws_and_ends_with_ctrl_c(
    started: Run, redis_url: str, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    process = watching(started.keys.run, redis_url, tmp_path, theirs)
    os.close(theirs)
    seen = b""
    while seen.count(b"training") < 3:
        seen += await asyncio.to_thread(os.read, ours, 4096)
    process.send_signal(signal.SIGINT)

    def rest() -> bytes:
        read = b""
        while True:
            try:
                read += os.read(ours, 4096)
            except OSError:  # the other end is closed
                return read

    seen += await asyncio.to_thread(rest)
    _, err = await asyncio.to_thread(process.communicate, timeout=60)
    os.close(ours)
    assert (process.returncode, err) == (0, "")
    assert b"\x1b[1A" in seen, "it goes up to draw over what it drew"
    assert seen.rstrip().endswith(b"\x1b[?25h"), "the cursor is there again"
