"""What a fork keeps and changes, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.provenance import record
from services.cli.provenance.fork import fork
from services.cli.recipe import Recipe
from services.learner.checkpointing import checkpoint
from shared import recipes
from shared.errors import CorruptDataError, InvalidInputError, NotFoundError, PreconditionError
from shared.streams.progress import Progress
from shared.streams.saved import FILE, Saved
from tests.support.kept import forkable
from tests.support.models import save_model

Parent = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 8 steps with checkpoints of steps 4 and 8 and weights of version 8."""
    monkeypatch.chdir(tmp_path)
    return forkable(Path("model"))


def test_tensors_are_linked_and_all_else_is_its_own(parent: Path) -> None:
    folder, step = fork(parent, "second", 4, ["learner.algorithm=grpo", "rollout.n=4"])
    assert (folder, step) == (parent.absolute().with_name("second"), 4)
    (made,) = (folder / "checkpoints").glob("step-*")
    source = parent / "checkpoints" / made.name
    checkpoint.verify(made)
    checkpoint.verify(source)
    assert (made / "shard.safetensors").samefile(source / "shard.safetensors")
    state = read(made / checkpoint.STATE)
    assert (state["step"], state["meta"]["groups"]) == (4, {})
    assert (state["identity"]["learner.algorithm"], state["identity"]["rollout.n"]) == ("grpo", 4)
    assert checkpoint.trained_groups(folder / "checkpoints") == {}
    assert not (folder / "weights").exists()
    saved = Saved.decode((made / FILE).read_text())
    assert saved == Saved(4, Progress(prompts=9, selection={"turns": 9}), {"one": "1 0.500000 0"})
    recipe = recipes.load(Recipe, folder / "recipe.toml", {})
    assert (recipe.run.id, recipe.learner.algorithm, recipe.run.path) == ("second", "grpo", folder)
    assert record.has_begun(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_newest_checkpoint_is_the_default_and_its_weights_come_along(parent: Path) -> None:
    folder, step = fork(parent, "second", None, ["run.steps=20"])
    assert step == 8
    weights = "weights/v00000008/model.safetensors"
    assert (folder / weights).samefile(parent / weights)


def test_solve_rates_of_other_problems_are_left_behind(parent: Path) -> None:
    folder, _ = fork(parent, "second", 4, ["reward.verifiers.mine.kind=math"])
    (carried,) = (folder / "checkpoints").glob(f"step-*/{FILE}")
    assert Saved.decode(carried.read_text()) == Saved(4, Progress(prompts=9), {})


@pytest.mark.parametrize(
    ("step", "flags", "error", "named"),
    [
        (5, [], NotFoundError, "no checkpoint of step 5; kept are steps 4, 8"),
        (None, [], InvalidInputError, "run.steps is 8, and the checkpoint is of step 8: no step is left"),
        (4, ["learner.lora.rank=8"], InvalidInputError, "learner.lora.rank is 8, and was 0: a fork keeps the shape"),
        (4, ["run.model=./wide"], InvalidInputError, "run.model is .*wide.*: a fork keeps the shape"),
        (4, ["learner.algorithm=none"], NotFoundError, "none"),
    ],
)
def test_what_cannot_go_on_is_refused_and_leaves_nothing(
    parent: Path, step: int | None, flags: list[str], error: type[Exception], named: str
) -> None:
    save_model(parent.parents[1] / "wide", hidden_size=64)
    with pytest.raises(error, match=named):
        fork(parent, "second", step, flags)
    assert [path.name for path in parent.parent.iterdir()] == ["first"]


def test_weights_of_another_seed_but_the_same_shape_are_taken(parent: Path) -> None:
    save_model(parent.parents[1] / "other", seed=1)
    folder, _ = fork(parent, "second", 4, ["run.model=./other"])
    assert read(folder / "provenance.json")["parent"]["settings_changed"][0]["setting"] == "run.model"


def test_a_torn_checkpoint_and_a_taken_name_are_refused(parent: Path) -> None:
    with pytest.raises(PreconditionError, match=r"first is there already"):
        fork(parent, "first", 4, [])
    (parent / "checkpoints/step-00000004-0000/shard.safetensors").write_bytes(b"torn")
    with pytest.raises(CorruptDataError, match=r"shard\.safetensors"):
        fork(parent, "second", 4, [])


def test_a_run_without_provenance_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(PreconditionError, match=r"has no provenance\.json"):
        fork(tmp_path / "old", "second", None, [])
