"""What `data check` and the preflight say of references that a verifier cannot read."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.cli.judging import make_judge
from services.cli.recipe import Recipe
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
        ("exact", {}, "$: 'answer' is a required property"),
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
