"""A run has one owner: a second start of the same run is refused with who holds it, and the first one goes on."""

import re
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Invocation, Start, settings
from tests.support.redis_server import Server
from tests.support.torchrun import until

ENDLESS = 100_000  # steps: the first run goes on until it is told to stop


def test_a_second_start_of_a_run_in_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    first = start("run", str(RECIPE), *settings(run__steps=ENDLESS))
    until(lambda: len(records.read(folder / records.LEARNER)) > 0, timeout=120)
    for command in (["run", str(RECIPE)], ["up", "--recipe", str(RECIPE)]):
        second = start(*command, *settings())
        code, _, err = second.finish(timeout=120)
        assert code == 2, err
        holder = f"the redis of run test is held by process {first.process.pid} on "
        assert re.search(rf"{holder}.*choose another run\.id", err)
        assert second.nothing_left(), second.alive()
    _goes_on(first, folder)
    code, out, err = start("audit", "runs/test").finish(timeout=120)
    assert code == 0, out + err


def test_a_second_learner_or_curriculum_on_the_same_redis_is_refused_whatever_its_folder(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with Server(tmp_path / "data", tmp_path / "r.sock") as server:
        where = {"REDIS_URL": server.url}
        first = start("run", str(RECIPE), *settings(run__steps=ENDLESS), environment=where)
        until(lambda: len(records.read(tmp_path / "runs/test" / records.LEARNER)) > 0, timeout=120)
        for role in ("learner", "curriculum"):
            elsewhere = settings(run__folder="other")
            second = start("serve", role, "--recipe", str(RECIPE), *elsewhere, environment=where)
            code, _, err = second.finish(timeout=120)
            assert code == 2, err
            assert re.search(rf"the {role} of run test is held by process \d+ on .*choose another run\.id", err)
        _goes_on(first, tmp_path / "runs/test")


def _goes_on(run: Invocation, folder: Path) -> None:
    """Takes another step, ends well when it is interrupted, and has made each step once."""
    done = len(records.read(folder / records.LEARNER))
    until(lambda: len(records.read(folder / records.LEARNER)) > done, timeout=120)
    run.process.send_signal(signal.SIGINT)
    code, _, err = run.finish(timeout=60)
    assert code == 130, err
    steps = [record["step"] for record in records.read(folder / records.LEARNER)]
    assert steps == list(range(1, len(steps) + 1))
