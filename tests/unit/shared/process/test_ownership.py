"""The lock of a role in a run's folder: one process holds it, and the next one is told which."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.errors import PreconditionError
from shared.process.ownership import Holder, locked

HOLD = """
import sys, time
from pathlib import Path
from shared.process.ownership import locked
with locked(Path(sys.argv[1]), "learner"):
    print("held", flush=True)
    time.sleep(1000)
"""


@contextmanager
def holding(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the learner's role."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_role_is_held_by_one_process_and_the_next_is_told_which(tmp_path: Path) -> None:
    folder = tmp_path / "countdown"
    with holding(folder) as other:
        where = rf"the learner of run countdown is held by process {other.pid} on .* since .*choose another run\.id"
        with pytest.raises(PreconditionError, match=where), locked(folder, "learner"):
            pass
        with locked(folder, "curriculum"):  # another role
            pass


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_gone_holds_nothing(tmp_path: Path, how: signal.Signals) -> None:
    with holding(tmp_path) as other:
        other.send_signal(how)
        other.wait()
        with locked(tmp_path, "learner"):
            assert Holder.decode((tmp_path / "locks" / "learner.lock").read_text()).pid == os.getpid()


def test_a_process_that_is_stopped_still_holds_it(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(PreconditionError, match=f"process {other.pid}"), locked(tmp_path, "learner"):
            pass


def test_it_is_waited_for(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {other.pid}"])
        with locked(tmp_path, "learner", wait_seconds=60):
            pass


def test_a_holder_is_known_to_be_there_or_gone_or_neither() -> None:
    me = Holder.current()
    assert Holder.decode(me.encode()) == me
    assert me.is_here
    assert not me.is_gone
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = Holder(me.host, me.boot, me.namespace, ended.pid, me.started, me.since)
    assert gone.is_gone
    reused = Holder(me.host, me.boot, me.namespace, me.pid, me.started + 1, me.since)
    assert reused.is_gone
    elsewhere = Holder(me.host, me.boot, "pid:[1]", ended.pid, me.started, me.since)
    assert not elsewhere.is_here
    assert not elsewhere.is_gone


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": 1}'])
def test_what_is_no_holder_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="names no process"):
        Holder.decode(text)
