"""The start model and the rows of the maze recipe: reproducible, and used to walking."""

import asyncio
import json
import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from deploy.recipes.maze.make_model import MAX_EPISODE_TOKENS, PROMPT, TURNS, teach
from deploy.recipes.maze.make_rows import SIZE, make_rows
from deploy.recipes.tiny_model import encode
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import layout_of
from services.cli.recipe import Recipe
from services.environments.kinds.maze import carve
from shared.files import sha256
from shared.recipes import load
from tests.support.recipe_models import make


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    return load(Recipe, repository / "deploy/recipes/maze.toml", {})


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "deploy/recipes/maze/model"


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shipped)
    return loaded


def test_the_same_seed_makes_the_same_bytes_and_the_shipped_tokenizer(tmp_path: Path, shipped: Path) -> None:
    made = [make("maze", tmp_path / name, "--batch", "4") for name in ("a", "b")]
    assert made[0] == made[1]
    assert all(made[0][name] == sha256(shipped / name) for name in made[0] if name != "model.safetensors")


def test_the_rows_are_all_mazes_once(repository: Path) -> None:
    lines = (repository / "deploy/recipes/maze/mazes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == make_rows()
    mazes = [str(carve(row["size"], random.Random(row["maze"]))) for row in rows]
    assert len(set(mazes)) == len(mazes)


def test_the_recipe_plays_what_the_model_was_taught(recipe: Recipe) -> None:
    assert recipe.environments.named["maze"]["moves"] == TURNS
    assert recipe.rollout.max_tokens == MAX_EPISODE_TOKENS
    assert recipe.data.train[0].prompt == PROMPT


def test_the_shipped_model_is_small_and_what_it_was_taught_fits(
    shipped: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped)
    assert layout_of(model) == RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)
    assert GenerationConfig.from_pretrained(shipped).max_new_tokens == MAX_EPISODE_TOKENS
    examples = [asyncio.run(teach(number, random.Random(number))) for number in range(100)]
    ids, labels = encode(tokenizer, examples)
    assert tokenizer.unk_token_id not in ids
    assert ids.shape[1] <= model.config.max_position_embeddings
    assert int((labels >= 0).sum(1).max()) <= MAX_EPISODE_TOKENS
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "".join(examples[0]).replace("<eos>", "")


def test_the_teacher_mostly_takes_open_ways_and_strays() -> None:
    """As sloppy as it says: of its moves some hit walls, and by no means every walk arrives."""
    walks = [asyncio.run(teach(number, random.Random(number))) for number in range(200)]
    seen = [text for _, *turns in walks for text in turns[1::2]]
    assert 0 < sum("a wall is" in text for text in seen) < 0.1 * len(seen)
    late = sum(len(walk) == 2 * TURNS for walk in walks)
    assert 0.4 * len(walks) < late < 0.9 * len(walks)
    assert all(f"goal: {SIZE - 1} E {SIZE - 1} S" in walk[0] for walk in walks)
