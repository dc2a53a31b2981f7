"""What dies or stops in a run is started again, and the run comes to its end with nothing lost."""

import json
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until

GROUPS = 8
SAMPLES = 8
STEPS = 12
FAULTS = [
    ("curriculum", signal.SIGKILL),
    ("generation", signal.SIGKILL),
    ("reward", signal.SIGKILL),
    ("learner", signal.SIGKILL),
    ("generation", signal.SIGSTOP),
    ("redis", signal.SIGKILL),
    ("reward", signal.SIGTERM),
]


def test_a_run_in_which_everything_dies_once(start: Start, tmp_path: Path) -> None:
    flags = settings(run__steps=STEPS, supervisor__liveness_seconds=6, learner__checkpoints__every=2)
    invocation = start("run", str(RECIPE), *flags)
    folder = tmp_path / "runs/test"
    for step, (name, fault) in enumerate(FAULTS, start=1):

        def due(step: int = step) -> bool:
            assert invocation.process.poll() is None, invocation.process.communicate()
            return any(record["step"] >= step for record in records.read(folder / records.LEARNER))

        until(due, timeout=120)
        invocation.signal(name, fault)
    code, out, err = invocation.finish(timeout=240)
    assert code == 0, err
    assert "Traceback" not in err
    summary = json.loads(out.splitlines()[-1])
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}
    restarts = json.loads((folder / "summary.json").read_text())["restarts"]
    expected = {name: sum(name == other for other, _ in FAULTS) for name, _ in FAULTS}
    assert all(restarts[name] >= count for name, count in expected.items()), restarts
    assert "generation did not answer for 6 s and was killed; it is started again" in err
    assert invocation.nothing_left(), invocation.alive()


def test_it_is_given_up_with_the_reason(start: Start, tmp_path: Path) -> None:
    invocation = start("up", "--recipe", str(RECIPE), *settings(run__steps=1000, supervisor__max_deaths=1))
    # The second step is recorded after the first is logged.
    until(lambda: len(records.read(tmp_path / "runs/test" / records.LEARNER)) > 1, timeout=120)
    invocation.signal("learner", signal.SIGKILL)
    code, _, err = invocation.finish(timeout=60)
    assert code == 1, err
    assert (
        "routershift: learner died once and is given up: it was ended by SIGKILL; the last line of its log: step" in err
    )
    assert invocation.nothing_left(), invocation.alive()
