"""The seed model of the Countdown recipe: reproducible, and as the recipe ships it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import layout_of
from services.curriculum.tasks.countdown import Countdown
from tests.support.recipe_models import make


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    first = make("countdown", tmp_path / "a", "--seed", "0", "--batch", "8")
    second = make("countdown", tmp_path / "b", "--seed", "0", "--batch", "8")
    assert first == second
    other = make("countdown", tmp_path / "c", "--seed", "1", "--batch", "8")
    assert other.keys() == first.keys()
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["tokenizer.json"] == first["tokenizer.json"]


def test_a_finer_shape_is_what_is_asked_for(tmp_path: Path) -> None:
    shape = ("--layers", "4", "--experts", "16", "--experts-per-token", "4", "--expert-size", "32")
    make("countdown", tmp_path, "--seed", "0", "--batch", "8", *shape)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert layout_of(model) == RouterLayout((0, 1, 2, 3), 16, 4, ScoreFunction.SOFTMAX)
    assert model.config.moe_intermediate_size == 32


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "deploy" / "recipes" / "countdown" / "model"


def test_the_shipped_model_is_small_and_routes_in_every_layer(shipped: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped)
    assert layout_of(model) == RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)
    assert model.num_parameters() < 1e6
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 4 << 20


def test_the_shipped_tokenizer_reads_prompts_by_character_and_gives_them_back(shipped: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    text = "12,3,7:43=(12-3)*7+0"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == len(text) + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_prompts_and_solutions_fit_the_model(shipped: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    settings = GenerationConfig.from_pretrained(shipped)
    limit = AutoModelForCausalLM.from_pretrained(shipped).config.max_position_embeddings
    task = Countdown(0)
    for problem in (task.train(i) for i in range(500)):
        prompt = len(tokenizer(problem.prompt).input_ids)
        answer = max(len(tokenizer(s, add_special_tokens=False).input_ids) for s in problem.solutions) + 1
        assert answer <= settings.max_new_tokens
        assert prompt + settings.max_new_tokens <= limit


def test_the_shipped_model_is_good_enough_to_be_rewarded_and_not_better(shipped: Path) -> None:
    """Greedy, on held-out problems: sampled accuracy at temperature 1 is lower."""
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    model = AutoModelForCausalLM.from_pretrained(shipped, dtype=torch.float32)
    problems = Countdown(0).held_out(128)
    prompts = tokenizer([p.prompt for p in problems], padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(**prompts, do_sample=False, max_new_tokens=16)
    answers = tokenizer.batch_decode(output[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    correct = sum(answer in problem.solutions for answer, problem in zip(answers, problems, strict=True))
    assert 0.2 < correct / len(problems) < 0.7
