"""What `data check` and the preflight say of references that a verifier cannot read."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.cli.judging import make_judge
from services.cli.recipe import Recipe
from shared.errors import InvalidInputError, NotFoundError
from shared.recipes import load


@pytest.mark.parametrize(
    ("verifier", "reference", "said"),
    [
        ("exact", {"answer": "2"}, None),
        ("exact", {"answer": ["2", "two"]}, None),
        (
            "exact",
            {"answer": 2},
            'answer is 2; expected string or array; columns.answer = "{{ COLUMN | string }}" makes text of it',
        ),
        ("exact", {"answer": True}, "answer is True; expected string or array"),
        ("exact", {}, "it has no 'answer'; name the column that has it in columns.answer"),
        (
            "regex",
            {"pattern": 7},
            'pattern is 7; expected string; columns.pattern = "{{ COLUMN | string }}" makes text of it',
        ),
        ("exact", {"answer": ["2", None]}, "answer[1] is None; expected string"),
        ("exact", {"answer": ["2", 3]}, "answer[1] is 3; expected string"),
        ("exact", {"answer": []}, "answer: [] should be non-empty"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said_with_the_fix(
    verifier: str, reference: Mapping[str, Any], said: str | None
) -> None:
    assert make_judge(load(Recipe, None, {}, ["run.model=none"]))(verifier, reference) == said


@pytest.mark.parametrize(
    ("verifier", "environment", "reference", "said"),
    [
        ("exact", "calculator", {"answer": "2"}, None),
        ("exact", "calculator", {}, "it has no 'answer'; name the column that has it in columns.answer"),
        ("", "maze", {"size": 4}, None),
        ("", "maze", {"size": 1}, "size: 1 is less than the minimum of 2"),
        ("exact", "maze", {"answer": "2", "size": "4"}, "size is 4; expected integer"),
    ],
)
def test_an_episode_has_to_begin_from_it_too(
    verifier: str, environment: str, reference: Mapping[str, Any], said: str | None
) -> None:
    assert make_judge(load(Recipe, None, {}, ["run.model=none"]))(verifier, reference, environment) == said


def test_an_environment_that_is_not_there_is_named_with_what_is_meant() -> None:
    judge = make_judge(load(Recipe, None, {}, ["run.model=none"]))
    with pytest.raises(NotFoundError, match=r"environment is 'calculater'; known: .*did you mean 'calculator'"):
        judge("exact", {"answer": "2"}, "calculater")
    with pytest.raises(InvalidInputError, match="environment calculator rewards no episodes, and no verifier is named"):
        judge("", {"answer": "2"}, "calculator")
