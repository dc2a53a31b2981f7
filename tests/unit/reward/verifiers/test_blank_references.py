"""A reference that says nothing is refused, and names the field: no response is right or wrong by it."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.cli.judging import make_judge
from services.cli.recipe import Recipe
from services.reward.verifiers.base import Item, Verifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError
from shared.recipes import load

BLANK: list[tuple[str, Mapping[str, Any], str]] = [
    (
        "exact",
        {"answer": ""},
        "reference of exact has answer = ''; expected a text or a list of texts, none of them bl",
    ),
    ("exact", {"answer": " \n"}, r"reference of exact has answer = ' \\n'"),
    ("exact", {"answer": ["Paris", ""]}, r"reference of exact has answer = \['Paris', ''\]"),
    ("exact", {"answer": []}, r"reference of exact has answer = \[\]"),
    ("exact", {}, "reference of exact has no answer; expected"),
    ("regex", {"pattern": ""}, "reference of regex: pattern is ''; expected text that is not blank"),
    ("regex", {"pattern": "  "}, "reference of regex: pattern is '  '; expected text that is not blank"),
    (
        "regex",
        {},
        "reference of regex has no pattern, and neither have the settings; set reward.verifiers.NAME.pattern",
    ),
    ("math", {"answer": ""}, "reference of math is {'answer': ''}; expected"),
    ("math", {"answer": "$$"}, "reference of math is '\\$\\$', which says nothing"),
    ("math", {}, "reference of math is {}; expected"),
    ("choice", {"answer": ""}, "reference of choice is {'answer': ''}; expected"),
    ("choice", {}, "reference of choice is {}; expected"),
    ("countdown", {"numbers": [], "target": 3}, "reference of countdown is .*, with one number at least"),
    ("json_schema", {}, "reference of json_schema has schema = None; expected an object"),
    ("instructions", {"instruction_id_list": [], "kwargs": []}, "reference of instructions is .*; expected"),
    ("code", {"tests": []}, "reference of code is {'tests': \\[\\]}; expected"),
    ("reasoning_gym", {}, "reference of reasoning_gym has dataset = None"),
]


@pytest.mark.parametrize(("kind", "reference", "said"), BLANK)
@pytest.mark.parametrize("response", ["", "x"])
def test_no_response_is_judged_by_it(kind: str, reference: Mapping[str, Any], said: str, response: str) -> None:
    verifier = make_verifiers({})[kind]
    assert isinstance(verifier, Verifier)
    with pytest.raises(InvalidInputError, match=said):
        verifier.verify(Item("What?", response, reference))


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("exact", {"answer": ""}),
        ("exact", {"answer": [" "]}),
        ("regex", {"pattern": ""}),
        ("math", {"answer": " "}),
        ("countdown", {"numbers": [], "target": 3}),
    ],
)
def test_the_schema_refuses_it_before_a_run(kind: str, reference: Mapping[str, Any]) -> None:
    assert make_judge(load(Recipe, None, {}, ["run.model=none"]))(kind, reference)
