"""A run has one owner: a second start of the same run is refused with who holds it, and the first one goes on.

What an interrupt stops goes on from there.
"""

import json
import re
import signal
import time
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Invocation, Start, settings
from tests.support.redis_server import Server
from tests.support.torchrun import until

GROUPS, SAMPLES = 8, 8
ENDLESS = 100_000  # steps: the first run goes on until it is told to stop


def test_a_second_start_of_a_run_is_refused_and_the_first_goes_on_where_it_stops(start: Start, tmp_path: Path) -> None:
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
    done = _takes_a_step_and_is_stopped(first, folder, interrupts=1)
    code, out, err = start("audit", "runs/test").finish(timeout=120)
    assert code == 0, out + err

    again = start("run", str(RECIPE), *settings(run__steps=done + 2))
    code, out, err = again.finish(timeout=120)
    assert code == 0, err
    steps = [record["step"] for record in records.read(folder / records.LEARNER)]
    assert steps == list(range(1, done + 3))
    assert json.loads(out)["trajectories_trained"] == (done + 2) * GROUPS * SAMPLES
    assert f"going on with step {done + 1} of {done + 2}: {done} were done before" in err
    assert "step    1/" not in err, "what the first start said is not said again"
    assert "version    0:" not in err
    assert records.read(folder / records.EVALUATIONS)[-1]["version"] == done + 2


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
        _takes_a_step_and_is_stopped(first, tmp_path / "runs/test", interrupts=2)


def _takes_a_step_and_is_stopped(run: Invocation, folder: Path, interrupts: int) -> int:
    """One interrupt ends it in order, a second one at once; it has made each step once. Returns how many those are."""
    done = len(records.read(folder / records.LEARNER))
    until(lambda: len(records.read(folder / records.LEARNER)) > done, timeout=120)
    for number in range(interrupts):
        if number:
            time.sleep(0.05)
        run.process.send_signal(signal.SIGINT)
    code, _, err = run.finish(timeout=60 if interrupts == 1 else 10)
    assert code == 130, err
    assert run.nothing_left(), run.alive()
    steps = [record["step"] for record in records.read(folder / records.LEARNER)]
    assert steps == list(range(1, len(steps) + 1))
    return len(steps)
