"""Runs that are synchronous, learn nothing, or are ended before their end."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.learner.checkpointing.checkpoint import trained_groups
from shared.process.exits import EXIT_FAILURE
from shared.tracking import records
from shared.weights import published
from tests.support import plain_loop, processes
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until


async def test_a_synchronous_run_is_a_plain_loop(start: Start, tmp_path: Path) -> None:
    """Prompts that a trained batch makes room for wait for the weights that it made: nothing is dropped as stale.

    The log-probs of the sampler depend in their last bits on which requests share a batch, so the learner recomputes
    them. A response would differ with about one token in a million.
    """
    flags = settings(run__steps=6, run__max_staleness=0, generation__engine="torch", learner__proximal="recompute")
    code, out, err = start("run", str(RECIPE), *flags).finish(timeout=240)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished"}
    assert summary["max_staleness_seen"] == 0

    plain = await plain_loop.run(RECIPE, [flag for flag in flags if flag != "--set"], tmp_path / "plain")
    steps = defaultdict(list)
    for group, step in sorted(trained_groups(tmp_path / "runs/test/checkpoints").items()):
        steps[step].append(group)
    assert [steps[step] for step in sorted(steps)] == plain.trained
    weights = load_file(tmp_path / "runs/test/weights" / published.folder_name(6) / "model.safetensors")
    assert weights.keys() == plain.weights.keys()
    assert all(torch.equal(weights[name], plain.weights[name]) for name in weights)


def test_a_run_whose_groups_all_have_equal_rewards_says_so_and_ends(start: Start, tmp_path: Path) -> None:
    never = {"reward__verifiers__countdown__kind": "regex", "reward__verifiers__countdown__pattern": "never"}
    invocation = start("run", str(RECIPE), *settings(supervisor__progress_seconds=25, **never))
    code, out, err = invocation.finish(timeout=240)
    assert code == 1, err
    assert out == ""
    said = [line for line in err.splitlines() if "had equal rewards for all their responses (zero variance)" in line]
    assert "no step for" in said[0]
    assert said[-1].startswith("routershift: no progress towards a step for ")
    assert invocation.nothing_left(), invocation.alive()


def test_a_terminal_that_is_closed_stops_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "run", str(RECIPE), *settings(run__steps=3)],
        cwd=tmp_path,
        env={**os.environ, **processes.marked(mark)},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal, of which it is told
    )  # fmt: skip
    os.close(theirs)
    try:
        reader = threading.Thread(target=read_and_close, args=(ours, after := threading.Event()))
        reader.start()
        until(lambda: bool(records.read(tmp_path / "runs/test" / records.LEARNER)), 120)
        after.set()
        reader.join(10)
        assert process.wait(120) == EXIT_FAILURE, "its summary could not be printed"
        assert len(records.read(tmp_path / "runs/test" / records.LEARNER)) == 3
        assert processes.running(mark) == []
    finally:
        processes.kill(mark)
        process.wait()


def read_and_close(terminal: int, after: threading.Event) -> None:
    """Whoever writes to a terminal that nobody reads waits."""
    while not after.is_set():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)


@pytest.mark.parametrize(("command", "exit_code"), [(["run"], 130), (["up", "--recipe"], 0)])
def test_an_interrupt_during_the_start_waits_for_nothing(
    start: Start, tmp_path: Path, command: list[str], exit_code: int
) -> None:
    """It is the regular end of `up`."""
    invocation = start(*command, str(RECIPE), *settings(run__steps=1000))
    log = tmp_path / "runs/test/logs/generation.jsonl"
    while not log.is_file():
        assert invocation.process.poll() is None, invocation.process.communicate()
        time.sleep(0.02)
    invocation.process.send_signal(signal.SIGINT)
    code, _, err = invocation.finish(timeout=30)
    assert code == exit_code, err
    assert invocation.nothing_left(), invocation.alive()


@pytest.mark.parametrize("engine", ["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_nothing_outlives_a_killed_supervisor(start: Start, tmp_path: Path, engine: str) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=1000, generation__engine=engine))
    until(lambda: len(records.read(tmp_path / "runs/test" / records.LEARNER)) > 0, timeout=120)
    invocation.process.kill()
    invocation.process.wait(10)
    assert invocation.nothing_left(), invocation.alive()
