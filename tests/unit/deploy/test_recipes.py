"""The recipes that are shipped: each setting says why it has its value, and an engine samples what is trained."""

import tomllib
from pathlib import Path

import pytest

from routershift.routing.families import why_refused
from services.cli.recipe import Recipe
from services.generation.engines.torch import limits as torch
from shared.models.folder import read_json
from shared.recipes import load
from tests.support.explained import unexplained

DEPLOY = Path(__file__).parents[3] / "deploy"
# Of models that no test downloads or makes.
MODEL_TYPES = {
    "allenai/OLMoE-1B-7B-0125-Instruct": "olmoe",
    "Qwen/Qwen3-30B-A3B": "qwen3_moe",
    "Qwen/Qwen3-4B": "qwen3",
    "unsloth/gpt-oss-20b-BF16": "gpt_oss",
    "arithmetic/model": "mixtral",
    "/models/countdown": "qwen3_moe",
    "/models/olmoe-1b-7b": "olmoe",
    "/models/qwen3-30b-a3b": "qwen3_moe",
}
RECIPES = sorted([*DEPLOY.glob("recipes/*.toml"), *DEPLOY.glob("k8s/overlays/*/recipe.toml")])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_setting_is_explained_where_it_stands(recipe: Path) -> None:
    assert list(unexplained(recipe.read_text())) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_its_model_is_one_that_its_engine_samples_and_a_run_trains(recipe: Path) -> None:
    """A dry run of a model that is not here cannot see it."""
    tables = load(Recipe, recipe, {})
    named = tomllib.loads(recipe.read_text())["run"]["model"]
    kind = MODEL_TYPES.get(named) or read_json(recipe.parent / named / "config.json")["model_type"]
    if tables.generation.engine == "torch":
        torch.refuse({"model_type": kind})
    assert not why_refused(kind)


def test_what_counts_as_an_explanation() -> None:
    recipe = """# Above a table, not a setting.
[run]
steps = 1
# Why two.
seed = 2
n = 3
max = 4  # why four
# Why five and six.
lora.rank = 5
lora.alpha = 6
optimizer.beta1 = 7

# Why eight.

port = 8
"""
    assert [line[-1] for line in unexplained(recipe)] == ["1", "3", "7", "8"]
