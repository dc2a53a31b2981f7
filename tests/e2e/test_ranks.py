"""A learner of two ranks in a run: it ends in order, and a rank that dies takes it down."""

import json
import signal
from pathlib import Path

import psutil

from shared import records
from tests.e2e.conftest import RECIPE, Invocation, Start, settings
from tests.torchrun import until


def follower(invocation: Invocation) -> psutil.Process:
    """Its title names its rank."""
    found = [
        process
        for process in psutil.Process(invocation.process.pid).children(recursive=True)
        if " ".join(process.cmdline()).startswith("routershift follow learner-1")
    ]
    assert len(found) == 1
    return found[0]


def test_a_run_with_two_ranks_goes_on_from_one_and_ends_with_all(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    for processes, steps in ((1, 2), (2, 4)):
        flags = settings(run__steps=steps, learner__processes=processes)
        invocation = start("run", str(RECIPE), *flags)
        code, out, err = invocation.finish(timeout=240)
        assert code == 0, err
        assert "Traceback" not in err
        assert json.loads(out.splitlines()[-1])["steps"] == steps
        assert invocation.nothing_left(), invocation.alive()
    assert [record["step"] for record in records.read(folder / records.LEARNER)] == [1, 2, 3, 4]
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert [path.name.split("-model")[0] for path in sorted(newest.glob("*.safetensors"))] == [
        "shard-00001",
        "shard-00002",
    ]
    assert (folder / "logs/learner-1.jsonl").is_file()


def test_a_learner_ends_with_its_follower(start: Start, tmp_path: Path) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=1000, learner__processes=2))
    until(lambda: len(records.read(tmp_path / "runs/test" / records.LEARNER)) > 0, timeout=120)
    follower(invocation).kill()
    code, _, err = invocation.finish(timeout=60)
    assert code != 0, err
    assert "routershift learner: rank 0 of 2 lost the other ranks" in err or "learner ended with code 1" in err
    assert invocation.nothing_left(), invocation.alive()


def test_an_interrupt_drains_all_ranks(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    invocation = start("run", str(RECIPE), *settings(run__steps=1000, learner__processes=2))
    until(lambda: len(records.read(folder / records.LEARNER)) > 0, timeout=120)
    helper = follower(invocation)
    helper.send_signal(signal.SIGTERM)  # as torchrun sends it to every rank
    invocation.process.send_signal(signal.SIGINT)
    code, _, err = invocation.finish(timeout=60)
    assert code == 130, err
    assert invocation.nothing_left(), invocation.alive()
    done = records.read(folder / records.LEARNER)[-1]["step"]
    assert (folder / "checkpoints" / f"step-{done:08d}-0000").is_dir()
