"""A run's folder says what made it, starts it again, and refuses what would make another run of it."""

import json
import shutil
import signal
from pathlib import Path

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.redis_server import Server
from tests.support.torchrun import until


def test_a_run_goes_on_from_its_own_recipe_and_refuses_to_become_another(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    code, _, err = start("run", str(RECIPE), *settings(run__steps=2)).finish(timeout=240)
    assert code == 0, err
    assert json.loads((folder / "provenance.json").read_text())["starts"][0]["step"] == 0

    code, _, err = start("run", str(RECIPE), *settings(run__steps=2, rollout__n=4)).finish(timeout=60)
    assert code == 2, err
    assert "run test cannot go on with other settings: rollout.n is 4, and was 8" in err
    assert "starting" not in err.partition("routershift:")[2]

    code, _, err = start("run", str(folder / "recipe.toml"), "--set", "run.steps=4").finish(timeout=240)
    assert code == 0, err
    assert "other than before: run.steps is 4, and was 2" in err
    found = json.loads((folder / "provenance.json").read_text())
    assert [each["step"] for each in found["starts"]] == [0, 2]
    assert [each["command"] for each in found["starts"]] == ["run", "run"], "their services add nothing"
    assert [change["setting"] for change in found["starts"][1]["settings_changed"]] == ["run.steps"]
    assert [step["step"] for step in records.steps(folder / records.LEARNER)] == [1, 2, 3, 4]


def test_a_service_that_is_started_alone_says_what_it_runs_on(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "runs/test/provenance.json"
    with Server(tmp_path / "data", tmp_path / "r.sock") as server:
        reward = start("serve", "reward", "--recipe", str(RECIPE), *settings(), environment={"REDIS_URL": server.url})
        until(file.is_file, timeout=60)
        reward.process.send_signal(signal.SIGTERM)
        code, _, err = reward.finish(timeout=60)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert found["services"]["reward"]["environment"] == found["environment"]
    assert found["starts"][0]["command"] == "serve reward"
    assert server.url not in file.read_text()


def test_a_run_whose_redis_is_lost_goes_on_where_its_checkpoint_was(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    flags = {"curriculum__selection__strategy": "dynamic", "learner__checkpoints__every": 1, "run__evaluate_every": 0}
    code, _, err = start("run", str(RECIPE), *settings(run__steps=3, **flags)).finish(timeout=240)
    assert code == 0, err
    (newest,) = (folder / "checkpoints").glob("step-00000003-*")
    carried = json.loads((newest / "curriculum.json").read_text())
    assert len(carried["solve_rates"]) > 0
    admitted = carried["progress"]["prompts"]
    assert admitted >= 3 * 8
    shutil.rmtree(folder / "redis")

    code, _, err = start("run", str(RECIPE), *settings(run__steps=5, **flags)).finish(timeout=240)
    assert code == 0, err
    log = (folder / "logs/curriculum.jsonl").read_text()
    assert f"Redis knew nothing of run test: prompts go on at {admitted}, with solve rates of" in log
    assert [step["step"] for step in records.steps(folder / records.LEARNER)] == [1, 2, 3, 4, 5]
    assert [each["version"] for each in records.read(folder / records.EVALUATIONS)] == [0, 3, 5]
    (newest,) = (folder / "checkpoints").glob("step-00000005-*")
    later = json.loads((newest / "curriculum.json").read_text())
    assert later["solve_rates"].keys() >= carried["solve_rates"].keys()
