"""What an evaluation estimates, and what of it can be set."""

from itertools import combinations
from pathlib import Path

import pytest

from services.curriculum.evaluation import pass_at_k
from services.curriculum.held_out import EvaluationSampling
from services.curriculum.settings import EvaluationSettings, Settings
from shared.errors import InvalidInputError
from shared.recipes import load
from shared.settings import RolloutSettings


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            choices = list(combinations(range(samples), k))
            share = sum(min(choice) < correct for choice in choices) / len(choices)
            assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "k"), [(1, ()), (2, (2,)), (3, (2,)), (4, (2, 4)), (16, (2, 4, 8, 16))])
def test_the_default_is_each_power_of_two_that_there_are_samples_for(samples: int, k: tuple[int, ...]) -> None:
    assert EvaluationSettings(sampling=EvaluationSampling(n=samples)).pass_at == k


def test_a_flag_takes_a_list() -> None:
    flags = ["run.model=m", "curriculum.evaluation.sampling.n=5", "curriculum.evaluation.pass_at_k=1,3,5"]
    assert load(Settings, None, {}, flags).curriculum.evaluation.pass_at == (1, 3, 5)


def test_what_an_evaluation_does_not_say_of_sampling_is_as_in_rollouts() -> None:
    rollout = RolloutSettings(max_tokens=9, temperature=0.6, stop=("END",))
    sampled, greedy = EvaluationSampling(n=3, top_p=0.9).requests(rollout)
    limits = {"max_tokens": 9, "stop": ("END",)}
    assert sampled == {"n": 3, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0, **limits}
    assert greedy == {"n": 1, "temperature": 0.0, **limits}
    (own,) = EvaluationSampling(n=1, temperature=1.2, greedy=False, max_tokens=5, stop=()).requests(rollout)
    assert (own["temperature"], own["max_tokens"], own["stop"]) == (1.2, 5, ())
    assert len(EvaluationSampling(n=1, temperature=0).requests(rollout)) == 1  # greedy once is enough


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["temperature=0", "n=2"], "temperature 0 gives one response.*n is 2, set it to 1"),
        (["temperature=0.001"], "temperature is 0.001; take 0"),
        (["top_p=0"], "sampling.top_p"),
    ],
)
def test_sampling_that_cannot_be_is_refused(flags: list[str], text: str) -> None:
    named = [f"curriculum.evaluation.sampling.{flag}" for flag in flags]
    with pytest.raises(InvalidInputError, match=text):
        load(Settings, None, {}, ["run.model=m", *named])


ROWS = """
[[data.train]]
source = "train.jsonl"
verifier = "math"
columns = { prompt = "question", reference = "answer" }
[[data.eval]]
source = "hard.jsonl"
every = 30
verifier = "math"
columns = { prompt = "question", reference = "answer" }
"""


@pytest.mark.parametrize("every", [20, 0])
def test_a_set_that_is_due_at_versions_which_are_not_kept_is_refused(tmp_path: Path, every: int) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(ROWS)
    for fine in (10, 15, 30):
        load(Settings, recipe, {}, ["run.model=m", f"run.evaluate_every={fine}"])
    with pytest.raises(InvalidInputError, match=f"every of held-out set 'hard' in data.eval is 30.*which is {every}"):
        load(Settings, recipe, {}, ["run.model=m", f"run.evaluate_every={every}"])


def test_a_strategy_by_priority_needs_rows_that_have_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    flags = ["run.model=m", "run.evaluate_every=30", "curriculum.selection.strategy=priority"]
    recipe.write_text(ROWS)
    with pytest.raises(InvalidInputError, match=r"needs a column: set columns.priority in \[\[data.train\]\]"):
        load(Settings, recipe, {}, flags)
    recipe.write_text(ROWS.replace('"answer" }', '"answer", priority = "score" }', 1))
    load(Settings, recipe, {}, flags)


def test_a_window_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"low is 0.95 and high is 0.9; low must be at most high"):
        load(Settings, None, {}, ["run.model=m", "curriculum.selection.low=0.95"])


@pytest.mark.parametrize("k", ["2,4", "0"])
def test_more_draws_than_samples_are_refused(k: str) -> None:
    flags = ["run.model=m", "curriculum.evaluation.sampling.n=3", f"curriculum.evaluation.pass_at_k={k}"]
    with pytest.raises(
        InvalidInputError,
        match=r"curriculum\.evaluation': pass_at_k holds \d; each k must be 1 to 3, which is sampling.n",
    ):
        load(Settings, None, {}, flags)
