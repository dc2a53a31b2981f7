"""A fork goes on from a checkpoint of another run under settings of its own; and people pause and resume a run."""

import json
import signal
from pathlib import Path

import pytest

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings
from tests.support.torchrun import until

FLAGS = {"learner__checkpoints__every": 1, "learner__checkpoints__keep": 9, "learner__checkpoints__keep_weights": 9}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fork_goes_on_at_its_step_with_another_algorithm(start: Start, tmp_path: Path) -> None:
    parent, child = tmp_path / "runs/test", tmp_path / "runs/child"
    flags = settings(run__steps=4, curriculum__selection__strategy="dynamic", **FLAGS)
    code, _, err = start("run", str(RECIPE), *flags).finish(timeout=240)
    assert code == 0, err
    before = files(parent / "checkpoints")

    changes = ("--set", "learner.algorithm=grpo", "--set", "run.seed=5")
    code, out, err = start("fork", "test", "child", "--step", "2", *changes).finish(timeout=60)
    assert code == 0, err
    assert out == "runs/child begins at step 2; start it with: routershift run runs/child/recipe.toml\n".replace(
        "runs/child", str(child)
    )
    assert (child / "weights/v00000002").is_dir()
    made = json.loads((child / "provenance.json").read_text())
    assert (made["parent"]["run"], made["parent"]["step"], made["starts"]) == ("test", 2, [])
    assert [each["setting"] for each in made["parent"]["settings_changed"]] == ["learner.algorithm", "run.seed"]
    (carried,) = (child / "checkpoints").glob("step-*/curriculum.json")
    known = json.loads(carried.read_text())
    assert known["solve_rates"]
    assert set(known["progress"]) == {"prompts", "selection"}

    code, _, err = start("run", str(child / "recipe.toml"), "--set", "learner.algorithm=rspo").finish(timeout=60)
    assert code == 2, err
    assert "learner.algorithm is rspo, and was grpo" in err

    code, out, err = start("run", str(child / "recipe.toml")).finish(timeout=240)
    assert code == 0, err
    assert json.loads(out)["algorithm"] == "grpo"
    assert [step["step"] for step in records.steps(child / records.LEARNER)] == [3, 4]
    evaluations = records.read(child / records.EVALUATIONS)
    assert [each["version"] for each in evaluations] == [2, 4]
    assert evaluations[0]["oldest_version"] == 2
    assert files(parent / "checkpoints") == before
    code, out, err = start("audit", "runs/child").finish(timeout=120)
    assert code == 0, out + err

    code, out, _ = start("runs", "--json").finish(timeout=60)
    listed = {each["id"]: each for each in json.loads(out)}
    assert code == 0
    assert {name: each["state"] for name, each in listed.items()} == {"test": "finished", "child": "finished"}
    assert listed["child"]["parent"] == "test@2"
    assert (listed["test"]["steps"], listed["test"]["total_steps"]) == (4, 4)
    assert listed["test"]["recipe"] == str(RECIPE)


def test_people_pause_and_resume_a_run(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    tokens, token, wrong = tmp_path / "tokens", tmp_path / "token", tmp_path / "wrong"
    secret, other = "o" * 40, "s" * 40
    tokens.write_text(f"operate {secret}\nsample,score {other}\n")
    token.write_text(secret)
    wrong.write_text(other)
    access = {"access__tokens": tokens, "access__token": token}
    up = start("up", "--recipe", str(RECIPE), *settings(run__steps=100_000, **access))
    until(lambda: len(records.read(folder / records.LEARNER)) > 0, timeout=120)

    code, _, err = start("pause", "test", "--set", f"access.token={wrong}").finish(timeout=60)
    assert code == 2, err
    assert "PERMISSION_DENIED" in err or "operate" in err
    code, out, err = start("pause", "test").finish(timeout=120)
    assert code == 0, err
    rested = int(out.split()[3].rstrip(";"))
    done = [record["step"] for record in records.read(folder / records.LEARNER)]
    assert done[-1] == rested
    code, out, err = start("status", "test", "--json").finish(timeout=60)
    assert json.loads(out)["phase"] == "paused"
    assert len(records.read(folder / records.LEARNER)) == len(done)
    code, out, err = start("resume", "test").finish(timeout=60)
    assert (code, out) == (0, f"goes on after step {rested}\n"), err
    until(lambda: len(records.read(folder / records.LEARNER)) > len(done), timeout=120)

    code, out, _ = start("runs").finish(timeout=60)
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["test", "running"]
    up.process.send_signal(signal.SIGINT)
    assert up.finish(timeout=60)[0] == 0
    code, _, err = start("pause", "test").finish(timeout=60)
    assert code == 2
    assert "run test is not running" in err


@pytest.mark.parametrize("command", ["pause", "resume", "fork"])
def test_a_run_that_is_not_there_is_named(start: Start, command: str) -> None:
    code, _, err = start(command, "nothing", *(["child"] if command == "fork" else [])).finish(timeout=60)
    assert code == 2
    assert err.startswith("routershift: run 'nothing' has no folder here or below runs/")
