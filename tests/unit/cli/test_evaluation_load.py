"""What an evaluation asks at once is held against what each service takes, before anything starts."""

import re
from pathlib import Path

import pytest

from services.cli.evaluation_load import check_load
from services.cli.recipe import Recipe
from shared.errors import InvalidInputError
from shared.recipes import load

ROWS = ["data.train.0.source=rows.csv", "data.train.0.prompt=walk", "data.train.0.environment=maze"]
HELD_OUT = [*ROWS, "data.eval.0.source=more.csv", "data.eval.0.prompt=walk", "data.eval.0.verifier=format"]


def recipe(*flags: str) -> Recipe:
    task = [] if any(flag.startswith("data.") for flag in flags) else ["run.task=calculator"]
    return load(Recipe, None, {}, ["run.model=model", "rollout.max_tokens=16", *task, *flags])


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["run.task=countdown", "curriculum.evaluation.concurrency=64"],
        ["curriculum.evaluation.concurrency=64", "curriculum.evaluation.sampling.greedy=false"],
        ["curriculum.evaluation.concurrency=1000", "curriculum.evaluation.problems=32"],
        ["curriculum.evaluation.concurrency=64", "environments.max_plays=128"],
        [*HELD_OUT, "curriculum.evaluation.concurrency=64"],
    ],
)
def test_what_fits(flags: list[str]) -> None:
    assert "responses at once" in check_load(recipe(*flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["curriculum.evaluation.concurrency=33"],
            "curriculum.evaluation.concurrency is 33, and with curriculum.evaluation.sampling that is 66 groups at "
            "once, 2 of each problem; allowed by environments.max_plays: 64; raise that to 66, or lower the "
            "concurrency to 32",
        ),
        (
            ["environments.max_plays=1"],
            "allowed by environments.max_plays: 1; raise that to 64",
        ),
        ([*ROWS, "curriculum.evaluation.concurrency=33"], "allowed by environments.max_plays: 64"),
        (
            [*HELD_OUT, "data.eval.0.environment=maze", "curriculum.evaluation.concurrency=33"],
            "with data.eval.0.sampling that is 66 groups",
        ),
        (
            ["reward.max_queued=95"],
            "allowed by reward.max_queued: 95; raise that to 96, or lower the concurrency to 31",
        ),
        (
            ["run.task=countdown", "curriculum.evaluation.sampling.n=64"],
            "allowed by generation.max_num_seqs and max_waiting together: 1152; raise that to 2080",
        ),
    ],
)
def test_what_a_service_would_refuse(flags: list[str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(said)):
        check_load(recipe(*flags))


def test_a_part_of_what_is_trained_on_is_held_out_as_it_is_treated(tmp_path: Path) -> None:
    """A maze rewards its episodes itself, so that no verifier is asked."""
    check_load(recipe(*ROWS, "reward.max_queued=1"))
