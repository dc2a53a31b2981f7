"""A run goes on: after its end with other settings, without its Redis, and as a fork under settings of its own."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.tracking import records
from tests.support.command import RECIPE, Start, settings, starting

STEPS, SAMPLES = 4, 8
KEPT = {"learner__checkpoints__every": 1, "learner__checkpoints__keep": 9, "learner__checkpoints__keep_weights": 9}


@dataclass(frozen=True)
class Place:
    """Where commands are given, with the run `test` that has come to its end there."""

    start: Start
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "runs/test"

    def evaluated(self) -> list[int]:
        return [each["version"] for each in records.read(self.folder / records.EVALUATIONS)]

    def steps(self) -> list[int]:
        return [each["step"] for each in records.steps(self.folder / records.LEARNER)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a first run was made. A run's own recipe names its folder in full, so it is copied from there and back."""
    root = tmp_path_factory.mktemp("first")
    flags = settings(run__steps=STEPS, run__evaluate_every=0, curriculum__selection__strategy="dynamic", **KEPT)
    with starting(root) as start:
        invocation = start("run", str(RECIPE), *flags)
        code, out, err = invocation.finish(timeout=240)
        assert code == 0, err
        assert "Traceback" not in err
        assert json.loads(out.splitlines()[-1])["steps"] == STEPS
        assert invocation.nothing_left(), invocation.alive()
        assert Place(start, root).evaluated() == [0, STEPS]
    shutil.copytree(root / "runs", root / "kept")
    return root


@pytest.fixture
def place(first: Path) -> Iterator[Place]:
    """With the first run as it ended, whatever a test before has made of it."""
    shutil.rmtree(first / "runs")
    shutil.copytree(first / "kept", first / "runs")
    with starting(first) as start:
        yield Place(start, first)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_goes_on_from_its_own_recipe_with_another_rank_and_refuses_to_become_another(place: Place) -> None:
    """Its folder says what made it; a learner of two ranks goes on from one, and ends with all."""
    assert json.loads((place.folder / "provenance.json").read_text())["starts"][0]["step"] == 0

    code, _, err = place.start("run", str(RECIPE), *settings(run__steps=STEPS, rollout__n=4)).finish(timeout=60)
    assert code == 2, err
    assert "run test cannot go on with other settings:" in err
    assert "rollout.n is 4, and was 8" in err
    assert "starting" not in err.partition("routershift:")[2]

    changes = ("--set", f"run.steps={STEPS + 2}", "--set", "learner.parallel.processes=2")
    invocation = place.start("run", str(place.folder / "recipe.toml"), *changes)
    code, out, err = invocation.finish(timeout=240)
    assert code == 0, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["steps"] == STEPS + 2
    assert invocation.nothing_left(), invocation.alive()
    assert "other than before:" in err
    assert f"run.steps is {STEPS + 2}, and was {STEPS}" in err
    found = json.loads((place.folder / "provenance.json").read_text())
    assert [each["step"] for each in found["starts"]] == [0, STEPS]
    assert [each["command"] for each in found["starts"]] == ["run", "run"], "their services add nothing"
    changed = {change["setting"] for change in found["starts"][1]["settings_changed"]}
    assert changed == {"run.steps", "learner.parallel.processes"}
    assert [each["step"] for each in records.read(place.folder / records.LEARNER)] == list(range(1, STEPS + 3))
    assert place.evaluated()[-1] == STEPS + 2
    newest = max((place.folder / "checkpoints").glob("step-*"))
    assert [path.name.split("-model")[0] for path in sorted(newest.glob("*.safetensors"))] == [
        "shard-00001",
        "shard-00002",
    ]
    assert (place.folder / "logs/learner-1.jsonl").is_file()


def test_a_run_whose_redis_is_lost_goes_on_where_its_checkpoint_was(place: Place) -> None:
    (newest,) = (place.folder / "checkpoints").glob(f"step-{STEPS:08d}-*")
    carried = json.loads((newest / "curriculum.json").read_text())
    assert len(carried["solve_rates"]) > 0
    admitted = carried["progress"]["prompts"]
    assert admitted >= STEPS * 8
    shutil.rmtree(place.folder / "redis")

    more = ("--set", f"run.steps={STEPS + 2}")
    code, _, err = place.start("run", str(place.folder / "recipe.toml"), *more).finish(timeout=240)
    assert code == 0, err
    log = (place.folder / "logs/curriculum.jsonl").read_text()
    assert f"Redis knew nothing of run test: prompts go on at {admitted}, with solve rates of" in log
    assert place.steps() == list(range(1, STEPS + 3))
    assert place.evaluated() == [0, STEPS, STEPS + 2]
    (newest,) = (place.folder / "checkpoints").glob(f"step-{STEPS + 2:08d}-*")
    later = json.loads((newest / "curriculum.json").read_text())
    assert later["solve_rates"].keys() >= carried["solve_rates"].keys()


def test_a_fork_goes_on_at_its_step_with_another_algorithm(place: Place) -> None:
    parent, child, start = place.folder, place.root / "runs/child", place.start
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
    assert [step["step"] for step in records.steps(child / records.LEARNER)] == [3, STEPS]
    evaluations = records.read(child / records.EVALUATIONS)
    assert [each["version"] for each in evaluations] == [2, STEPS]
    assert evaluations[0]["oldest_version"] == 2
    assert files(parent / "checkpoints") == before
    code, out, err = start("audit", "runs/child").finish(timeout=120)
    assert code == 0, out + err

    code, out, _ = start("runs", "--json").finish(timeout=60)
    listed = {each["id"]: each for each in json.loads(out)}
    assert code == 0
    assert {name: each["state"] for name, each in listed.items()} == {"test": "finished", "child": "finished"}
    assert listed["child"]["parent"] == "test@2"
    assert (listed["test"]["steps"], listed["test"]["total_steps"]) == (STEPS, STEPS)
    assert listed["test"]["recipe"] == str(RECIPE)


@pytest.mark.parametrize("command", ["pause", "resume", "fork"])
def test_a_run_that_is_not_there_is_named(start: Start, command: str) -> None:
    code, _, err = start(command, "nothing", *(["child"] if command == "fork" else [])).finish(timeout=60)
    assert code == 2
    assert err.startswith("routershift: run 'nothing' has no folder here or below runs/")
