"""The seed model of the calculator recipe: reproducible, and used to turns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from deploy.recipes.calculator.make_model import MAX_EPISODE_TOKENS, teach
from deploy.recipes.tiny_model import encode
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import layout_of
from services.curriculum.tasks.calculator import Calculator
from services.curriculum.tasks.countdown import expressions
from services.environments.registry import make_environments
from tests.support.recipe_models import make


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    first = make("calculator", tmp_path / "a", "--seed", "0", "--batch", "8")
    second = make("calculator", tmp_path / "b", "--seed", "0", "--batch", "8")
    assert first == second
    other = make("calculator", tmp_path / "c", "--seed", "1", "--batch", "8")
    assert other["model.safetensors"] != first["model.safetensors"]


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "deploy" / "recipes" / "calculator" / "model"


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shipped)
    return loaded


def test_the_shipped_model_is_small_and_routes_in_every_layer(shipped: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped)
    assert layout_of(model) == RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)
    assert model.num_parameters() < 1e6
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 4 << 20


def test_what_the_teacher_says_and_reads_fits_the_model(shipped: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = GenerationConfig.from_pretrained(shipped)
    longest = AutoModelForCausalLM.from_pretrained(shipped).config.max_position_embeddings
    assert settings.max_new_tokens == MAX_EPISODE_TOKENS
    task, rng = Calculator(0), np.random.default_rng(0)
    examples = [teach(task.train(i), True, rng) for i in range(500)]
    ids, labels = encode(tokenizer, examples)
    assert ids.shape[1] <= longest
    assert tokenizer.unk_token_id not in ids
    assert int((labels >= 0).sum(1).max()) <= MAX_EPISODE_TOKENS


def test_only_what_the_model_says_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = encode(tokenizer, [("3,7,5:26=", "3*7-5?", "16;", "3*7+5"), ("1,2,3:6=", "1+2+3")])
    said = ["".join(tokenizer.convert_ids_to_tokens(row[row >= 0])) for row in labels]
    assert said == ["3*7-5?3*7+5<eos>", "1+2+3<eos>"]
    assert all(torch.equal(ids[i][labels[i] >= 0], labels[i][labels[i] >= 0]) for i in range(2))


def test_values_are_those_of_the_environment_and_a_hit_is_the_answer() -> None:
    configured = make_environments({})["calculator"]
    task, rng = Calculator(0), np.random.default_rng(1)
    hits = 0
    for problem in (task.train(i) for i in range(200)):
        _, *turns = teach(problem, True, rng)
        values = turns[1::2]
        assert all(turn.endswith(tuple(configured.make().stop)) for turn in turns[:-1:2])
        if f"{problem.target};" in values:
            hits += 1
            assert values.index(f"{problem.target};") == len(values) - 1
            assert turns[-1] == turns[-3].rstrip("?")
    assert hits > 50


def test_after_a_hit_the_shipped_model_answers_and_after_a_miss_it_tries_on(
    shipped: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32)
    problems, rng = Calculator(0).held_out(64), np.random.default_rng(0)
    hits = [(problem.solutions[0], problem.target) for problem in problems]
    misses = []
    for problem in problems:
        missing = [(text, value) for text, value in expressions(problem.numbers) if value != problem.target]
        misses.append(missing[rng.integers(len(missing))])
    after_hit, after_miss = (
        _greedy(model, tokenizer, [f"{p.prompt}{e}?{v};" for p, (e, v) in zip(problems, tried, strict=True)])
        for tried in (hits, misses)
    )
    assert sum(answer == hit for answer, (hit, _) in zip(after_hit, hits, strict=True)) > 0.9 * len(problems)
    assert sum("?" in turn for turn in after_miss) > 0.6 * len(problems)
    assert sum(turn.partition("?")[0] == miss for turn, (miss, _) in zip(after_miss, misses, strict=True)) < 0.3 * len(
        problems
    )


def _greedy(model: AutoModelForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[str]:
    prompts = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(**prompts, do_sample=False, max_new_tokens=12)
    decoded: list[str] = tokenizer.batch_decode(output[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    return decoded
