"""The start model and the rows of the python recipe: reproducible, and used to calls of a tool."""

import csv
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from deploy.recipes.python.make_model import MAX_EPISODE_TOKENS, teach
from deploy.recipes.python.make_rows import pairs
from deploy.recipes.tiny_model import encode
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.routers import layout_of
from services.environments.kinds.python import PythonEnvironment, PythonSettings
from services.environments.tool_calls.registry import AUTO, make_parser
from shared.files import sha256
from shared.models.chat import ChatTemplate
from tests.support.recipe_models import make


@pytest.fixture(scope="module")
def shipped(repository: Path) -> Path:
    return repository / "deploy/recipes/python/model"


@pytest.fixture(scope="module")
def tokenizer(shipped: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shipped)
    return loaded


def test_the_same_seed_makes_the_same_bytes_and_the_shipped_tokenizer(tmp_path: Path, shipped: Path) -> None:
    made = [make("python", tmp_path / name, "--batch", "4") for name in ("a", "b")]
    assert made[0] == made[1]
    assert all(made[0][name] == sha256(shipped / name) for name in made[0] if name != "model.safetensors")


def test_the_rows_are_right_and_the_model_was_taught_on_others(repository: Path) -> None:
    with (repository / "deploy/recipes/python/products.csv").open(newline="") as file:
        rows = [(int(row["a"]), int(row["b"]), int(row["product"])) for row in csv.DictReader(file)]
    kept, taught = pairs()
    assert [(a, b) for a, b, _ in rows] == kept
    assert all(a * b == product for a, b, product in rows)
    assert not set(kept) & set(taught)


def test_the_shipped_model_is_small_and_what_it_was_taught_fits(
    shipped: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(shipped)
    assert layout_of(model) == RouterLayout((0, 1, 2), 8, 2, ScoreFunction.SOFTMAX)
    assert GenerationConfig.from_pretrained(shipped).max_new_tokens == MAX_EPISODE_TOKENS
    rng = np.random.default_rng(0)
    ids, labels = encode(tokenizer, [teach(tokenizer, 12, 34, calls, rng) for calls in (True, False) * 50])
    assert tokenizer.unk_token_id not in ids
    assert ids.shape[1] <= model.config.max_position_embeddings
    assert int((labels >= 0).sum(1).max()) <= MAX_EPISODE_TOKENS


def test_what_the_teacher_says_is_a_call_and_what_it_reads_follows_by_the_template(
    shipped: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat, tools = ChatTemplate(tokenizer, shipped), PythonEnvironment(PythonSettings()).tools
    parser = make_parser(AUTO, tokenizer.chat_template)
    assert parser is not None
    example = teach(tokenizer, 12, 34, True, np.random.default_rng(1))
    question = [{"role": "user", "content": "12 * 34"}]
    prompt, *turns = example
    call, read, answer = turns
    assert f"<bos>{prompt}" == chat.render(question, tools)
    parsed = parser.parse(call.removesuffix("<eos>"))
    (made,) = parsed.tool_calls
    assert (made.name, parsed.content) == ("python", "")
    assert made.arguments in ({"code": "print(12*34)"}, {"code": "print(12+34)"})
    said = [*question, {"role": "assistant", "content": call.removesuffix("<eos>")}]
    sampled = tokenizer(call, add_special_tokens=False).input_ids
    added = [{"role": "tool", "content": f"{answer}\n"}]
    following = chat.next_turn(said, sampled, added, tools)
    assert following is not None
    assert tokenizer.decode(following) == read
