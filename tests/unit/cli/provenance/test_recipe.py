"""The recipe in a run's folder starts the run again, wherever it is read."""

from pathlib import Path

import pytest

from services.cli.provenance.settings import plain, recipe_toml
from services.cli.recipe import Recipe
from shared import recipes
from tests.support.pages import ROOT

RECIPES = sorted((ROOT / "deploy" / "recipes").glob("*.toml"))


def written(recipe: Recipe, folder: Path) -> Path:
    file = folder / "recipe.toml"
    file.write_text(recipe_toml(recipe), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for recipes; the commit of a model on the Hub is the name of its folder in the cache."""
    monkeypatch.setattr("shared.settings.fetch", lambda *args, **kwargs: Path("/cache/snapshots/0123abcd"))
    return tmp_path


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_it_holds_every_setting_of_a_recipe(file: Path, folder: Path) -> None:
    flags = ["run.id=again", "learner.optimizer.learning_rate=3e-7", "run.trackers=one,two"]
    recipe = recipes.load(Recipe, file, {"ROUTERSHIFT_ROLLOUT__STOP": 'tab\tand "quotes" 😀\x7f'}, flags)
    read = recipes.load(Recipe, written(recipe, folder), {})
    expected = plain(recipe)
    if not isinstance(recipe.run.model, Path):
        expected["run"]["model_revision"] = "0123abcd"
    assert plain(read) == expected


def test_paths_hold_wherever_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    (folder / "here" / "recipe.toml").write_text(
        '[run]\nmodel = "./model"\n[[data.train]]\nsource = "rows.jsonl"\ncolumns = {prompt = "q", answer = "a"}\n'
        'chat_template = "chat.jinja"\nverifier = {file = "mine.py"}\n[access]\ntokens = "tokens"\n'
    )
    recipe = recipes.load(Recipe, Path("recipe.toml"), {})
    file = written(recipe, folder)
    monkeypatch.chdir(folder)
    read = recipes.load(Recipe, file, {})
    assert read.run.model == folder / "here" / "model"
    assert read.run.path == folder / "here" / "runs" / recipe.run.id
    assert read.data.train[0].source == str(folder / "here" / "rows.jsonl")
    assert read.data.train[0].chat_template == folder / "here" / "chat.jinja"
    assert read.reward.verifiers["data-train-0"]["file"] == str(folder / "here" / "mine.py")
    assert read.access.tokens == folder / "here" / "tokens"


def test_no_secret_is_written_and_none_is_asked_for(folder: Path) -> None:
    environment = {"REDIS_URL": "redis://me:hunter2@127.0.0.1:6390/0"}
    recipe = recipes.load(Recipe, None, environment, ["run.model=./model", "run.task=countdown"])
    text = recipe_toml(recipe)
    assert "hunter2" not in text
    assert "6390" not in text
    assert not recipes.load(Recipe, written(recipe, folder), {}).names_redis


def test_a_port_is_asked_for_only_where_it_was(folder: Path) -> None:
    recipe = recipes.load(Recipe, None, {}, ["run.model=./model", "run.task=countdown", "learner.port=7777"])
    read = recipes.load(Recipe, written(recipe, folder), {})
    assert "port" in read.learner.model_fields_set
    assert not {"metrics_port", "health_port"} & read.learner.model_fields_set
    assert "port" not in read.generation.model_fields_set
    assert "generation_address" not in read.curriculum.model_fields_set
