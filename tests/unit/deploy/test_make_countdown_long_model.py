"""The start model of the long Countdown recipe: reproducible, and good at the order of numbers that it was shown."""

import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from deploy.recipes.countdown.make_model import batches
from deploy.recipes.countdown_long.make_model import ascending
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import layout_of
from services.curriculum.tasks.countdown import Countdown, Problem
from shared.files import sha256
from tests.support.recipe_models import make


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "deploy/recipes/countdown_long/model"


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shipped)
    return loaded


def test_the_same_seed_makes_the_same_bytes_and_the_shipped_tokenizer(tmp_path: Path, shipped: Path) -> None:
    made = [make("countdown_long", tmp_path / name, "--batch", "4") for name in ("a", "b")]
    assert made[0] == made[1]
    assert all(made[0][name] == sha256(shipped / name) for name in made[0] if name != "model.safetensors")


def test_it_is_shown_the_problems_of_the_other_recipe_in_ascending_order(tokenizer: PreTrainedTokenizerFast) -> None:
    shown, other = (
        [tokenizer.decode(row, skip_special_tokens=True) for ids, _ in islice(made, 2) for row in ids]
        for made in (batches(tokenizer, 0, 32, ascending), batches(tokenizer, 0, 32))
    )
    for text, as_it_comes in zip(shown, other, strict=True):
        *numbers, target = map(int, re.split("[,:]", text.partition("=")[0]))
        assert numbers == sorted(numbers)
        *any_order, same_target = map(int, re.split("[,:]", as_it_comes.partition("=")[0]))
        assert (sorted(any_order), same_target) == (numbers, target)
        assert not Problem(tuple(numbers), target).is_held_out
    assert shown != other


@pytest.fixture(scope="module")
def model(shipped: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32)
    return loaded


def test_the_shipped_model_is_small_and_routes_in_every_layer(model: PreTrainedModel) -> None:
    assert layout_of(model) == RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)
    assert model.num_parameters() < 1e6


def test_in_another_order_it_does_worse(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Greedily, on held-out problems: the recipe has something to teach that the model does not do."""

    def right(problems: list[Problem]) -> float:
        prompts = tokenizer([p.prompt for p in problems], padding=True, padding_side="left", return_tensors="pt")
        output = model.generate(**prompts, do_sample=False, max_new_tokens=16)
        answers = tokenizer.batch_decode(output[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
        return sum(a in p.solutions for a, p in zip(answers, problems, strict=True)) / len(problems)

    problems = Countdown(0).held_out(256)
    taught, any_order = right([ascending(problem) for problem in problems]), right(problems)
    assert 0.35 < taught < 0.7
    assert 0.15 < any_order < taught - 0.1
