"""A run has one owner: a second start of the same run is refused with who holds it, and the first one goes on."""

import json
import re
from pathlib import Path

import pytest

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.redis_server import Server
from tests.support.torchrun import until

STEPS = 30


@pytest.mark.parametrize("command", ["run", "up"])
def test_a_second_start_of_a_run_in_the_same_folder_is_refused(start: Start, tmp_path: Path, command: str) -> None:
    folder = tmp_path / "runs/test"
    first = start("run", str(RECIPE), *settings(run__steps=STEPS))
    until(lambda: len(records.read(folder / records.LEARNER)) > 0, timeout=120)
    second = start(*(["run", str(RECIPE)] if command == "run" else ["up", "--recipe", str(RECIPE)]), *settings())
    code, _, err = second.finish(timeout=120)
    assert code == 2, err
    assert re.search(rf"the redis of run test is held by process {first.process.pid} on .*choose another run\.id", err)
    assert second.nothing_left(), second.alive()
    code, out, err = first.finish(timeout=240)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
    assert [record["step"] for record in records.read(folder / records.LEARNER)] == list(range(1, STEPS + 1))
    code, out, err = start("audit", "runs/test").finish(timeout=120)
    assert code == 0, out + err


def test_a_second_learner_or_curriculum_on_the_same_redis_is_refused_whatever_its_folder(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with Server(tmp_path / "data", tmp_path / "r.sock") as server:
        where = {"REDIS_URL": server.url}
        first = start("run", str(RECIPE), *settings(run__steps=STEPS), environment=where)
        until(lambda: len(records.read(tmp_path / "runs/test" / records.LEARNER)) > 0, timeout=120)
        for role in ("learner", "curriculum"):
            elsewhere = settings(run__folder="other")
            second = start("serve", role, "--recipe", str(RECIPE), *elsewhere, environment=where)
            code, _, err = second.finish(timeout=120)
            assert code == 2, err
            assert re.search(rf"the {role} of run test is held by process \d+ on .*choose another run\.id", err)
        code, out, err = first.finish(timeout=240)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS
