"""What a start is compared with, what is refused, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.provenance import record
from services.cli.recipe import Recipe
from shared import recipes
from shared.errors import CorruptDataError, InvalidInputError, NotFoundError
from shared.tracking import records
from tests.support.data import sums, write_jsonl
from tests.support.models import save_model

Load = Callable[..., Recipe]


@pytest.fixture
def load(recipe: Path) -> Load:
    return lambda *flags, **environment: recipes.load(Recipe, recipe, environment, flags)


def begin(recipe: Recipe) -> list[str]:
    start = record.prepare(recipe)
    start.write("run", Path("recipe.toml"))
    return [str(change) for change in start.changes]


def read(recipe: Recipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((recipe.run.path / "provenance.json").read_text())
    return found


def evaluate(recipe: Recipe) -> None:
    """The run has begun."""
    records.append(recipe.run.path / records.EVALUATIONS, {"version": 0})


def test_it_names_settings_model_data_and_what_it_ran_on(load: Load) -> None:
    recipe = load(REDIS_URL="redis://me:hunter2@localhost")
    begin(recipe)
    found = read(recipe)
    assert found["run"] == "mine"
    assert found["settings"]["rollout"]["n"] == 8
    assert "hunter2" not in json.dumps(found)
    assert len(found["model"]["fingerprint"]) == 64
    (data,) = found["files"]["data.train.0.source"]
    assert data["rows"] == 10
    assert len(data["sha256"]) == 64
    (code,) = found["files"]["reward.verifiers.data-train-0.file"]
    assert code["path"].endswith("mine.py")
    assert found["environment"]["packages"]["pydantic"]
    assert found["environment"]["host"]["cores"] > 0
    assert {"commit", "dirty", "folder"} == set(found["environment"]["code"])
    assert [start["command"] for start in found["starts"]] == ["run"]
    assert found["parent"] is None


def test_a_start_with_the_same_settings_has_nothing_to_say(load: Load, tmp_path: Path) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    assert begin(load()) == []
    again = recipes.load(Recipe, recipe.run.path / "recipe.toml", {})
    assert begin(again) == []
    assert [start["step"] for start in read(recipe)["starts"]] == [0, 0, 0]


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("run.seed=3", "run.seed is 3, and was 0"),
        ("run.groups_per_step=4", "run.groups_per_step is 4, and was 32"),
        ("rollout.n=4", "rollout.n is 4, and was 8"),
        ("learner.algorithm=grpo", "learner.algorithm is grpo, and was rspo"),
        ("learner.lora.rank=8", "learner.lora.rank is 8, and was 0"),
        ("curriculum.evaluation.problems=7", "curriculum.evaluation.problems is 7, and was 512"),
        ("data.held_out_share=0.1", "data.held_out_share is 0.1, and was 0.05"),
        ("data.train.0.filter=true", "data.train.0.filter is true, and was unset"),
        ("data.train.0.columns.id=question", "data.train.0.columns.id is question, and was unset"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused(load: Load, flag: str, named: str) -> None:
    recipe = load()
    begin(recipe)
    before = read(recipe)
    evaluate(recipe)
    with pytest.raises(InvalidInputError, match=rf"^run mine cannot go on with other settings: {named}\. Set them"):
        begin(load(flag, "learner.optimizer.learning_rate=1e-3"))
    assert read(recipe) == before


def test_a_run_of_a_version_with_fewer_or_other_settings_goes_on(load: Load) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    file = recipe.run.path / "provenance.json"
    written = json.loads(file.read_text())
    tables = written["settings"]
    del (
        tables["run"]["seed"],
        tables["run"]["stop"],
        tables["learner"]["checkpoints"],
        tables["data"]["train"][0]["repeats"],
    )
    tables["learner"]["former"] = {"setting": 3}
    file.write_text(json.dumps(written))
    assert begin(load()) == []
    file.write_text(json.dumps(written))
    with pytest.raises(InvalidInputError, match=r"run\.seed is 3, and was unset\. Set"):
        begin(load("run.seed=3"))


def test_another_source_is_refused(load: Load, tmp_path: Path) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    write_jsonl(tmp_path / "more.jsonl", sums(3))
    more = ("source=more.jsonl", "columns.prompt=question", "columns.answer=answer", "verifier=math")
    with pytest.raises(InvalidInputError, match=r"data\.train\.1\.source is .*more\.jsonl, and was unset"):
        begin(load(*(f"data.train.1.{each}" for each in more)))


def test_all_of_them_are_named_at_once(load: Load) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    with pytest.raises(InvalidInputError, match=r"rollout.n is 4, and was 8; run.seed is 3, and was 0"):
        begin(load("run.seed=3", "rollout.n=4"))


def test_knobs_are_said_and_kept(load: Load) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    said = begin(load("learner.optimizer.learning_rate=1e-3", "run.steps=7", "learner.checkpoints.keep=5"))
    assert said == [
        "learner.checkpoints.keep is 5, and was 2",
        "learner.optimizer.learning_rate is 0.001, and was 1e-06",
        "run.steps is 7, and was 100",
    ]
    last = read(recipe)["starts"][-1]
    assert {"setting": "run.steps", "before": "100", "now": "7"} in last["settings_changed"]


def test_a_data_file_that_changed_is_refused_and_one_that_moved_is_not(load: Load, tmp_path: Path) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    (tmp_path / "rows.jsonl").rename(tmp_path / "moved.jsonl")
    moved = ("data.train.0.source=moved.jsonl",)
    assert begin(load(*moved)) == []
    write_jsonl(tmp_path / "moved.jsonl", sums(12))
    with pytest.raises(
        InvalidInputError,
        match=r"data.train.0.source is .*moved.jsonl \(SHA-256 \w{12}, 12 rows\), and was .* 10 rows\)",
    ):
        begin(load(*moved))


def test_code_of_a_verifier_that_changed_is_said(load: Load, tmp_path: Path) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    (tmp_path / "mine.py").write_text("def score(response, reference):\n    return 0.5\n")
    (said,) = begin(load())
    assert said.startswith("reward.verifiers.data-train-0.file is ")


def test_another_model_is_refused_and_one_that_moved_is_not(load: Load, tmp_path: Path) -> None:
    recipe = load()
    begin(recipe)
    evaluate(recipe)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert begin(load("run.model=./moved")) == []
    save_model(tmp_path / "other", seed=1)
    with pytest.raises(
        InvalidInputError, match=r"run.model is .*other \(fingerprint \w{12}\), and was .*moved \(finger"
    ):
        begin(load("run.model=./other"))


def test_a_run_that_never_began_may_change_in_everything(load: Load) -> None:
    begin(load())
    assert begin(load("run.seed=3")) == ["run.seed is 3, and was 0"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run": "mine"}', '{"schema": 99}'])
def test_a_record_that_cannot_be_read_is_named(load: Load, text: str) -> None:
    recipe = load()
    recipe.run.path.mkdir(parents=True)
    (recipe.run.path / "provenance.json").write_text(text)
    with pytest.raises(CorruptDataError, match=r"provenance\.json (is no record of a run|has schema 99)"):
        begin(recipe)


def test_data_that_is_not_there_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(NotFoundError, match=r"rows\.jsonl: no such file"):
        begin(load())
    assert not load().run.path.exists()
