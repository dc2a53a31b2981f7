"""The verifier of JSON: what it accepts, and schemas that are the task's fault."""

from pathlib import Path
from typing import Any

import pytest

from services.reward.verifiers.base import VerifierSettings
from services.reward.verifiers.json_schema import JsonSchemaVerifier
from shared.errors import InvalidInputError
from tests.support.judges import judge

JSON = JsonSchemaVerifier(VerifierSettings())
POINT = {"schema": {"type": "object", "required": ["x"], "properties": {"x": {"type": "integer", "minimum": 0}}}}


@pytest.mark.parametrize(
    ("response", "correct", "valid"),
    [
        ('{"x": 1}', 1, 1),
        ('Here it is:\n```json\n{"x": 1}\n```\nDone.', 1, 1),
        ('<think>{}</think>{"x": 1}', 1, 1),
        ('{"x": -1}', 0, 1),
        ('{"y": 1}', 0, 1),
        ("[]", 0, 1),
        ('{"x": NaN}', 0, 0),
        ('{"x": 1', 0, 0),
        ('It is {"x": 1}', 0, 0),
        ('```\n{"x": 1}\n```\n```\n{"x": 2}\n```', 0, 0),
        ("[" * 100_000, 0, 0),
        ("", 0, 0),
        ('```python\nprint(1)\n```\n```json\n{"x": 1}\n```', 1, 1),
        ('```json\r\n{"x": 1}\r\n```\r\n', 1, 1),
        ('```json {"x": 1}```', 1, 1),
        ('```{"x": 1}```', 1, 1),
        ('  ```JSON\n  {"x": 1}\n  ```', 1, 1),
        ('~~~json\n{"x": 1}\n~~~', 1, 1),
        ('```json title="a.json"\n{"x": 1}\n```', 1, 1),
        ('```json\n{"x": 1}\n```\n```json\n{"x": 2}\n```', 0, 0),
        ('```json\n{"x": 1}', 0, 0),
        ('<think>{"x": -1}</think><answer>{"x": 1}</answer>', 1, 1),
        ('{"x": 1, "s": "</think>"}', 1, 1),
        ('{"x": 1, "s": "<think>"}', 1, 1),
        ('<think>...</think>{"x": 1, "s": "</think>"}', 1, 1),
        ('<think>{"x": 1}', 0, 0),
        ('{"x": 1, "s": "```"}', 1, 1),
        ('{"x": 1' + "0" * 5000 + "}", 1, 1),
        ('{"x": -1' + "0" * 5000 + "}", 0, 1),
        ('{"x": 1' + "0" * 100_000 + "}", 0, 0),
        ('{"x": 1e400}', 0, 0),
    ],
)
def test_json(response: str, correct: float, valid: float) -> None:
    assert judge(JSON, response, POINT).parts == {"correct": correct, "valid": valid}


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {"type": "nothing"},
        {"$ref": "#/$defs/none"},
        {"minimum": "1"},
    ],
)
def test_an_unusable_schema_is_the_tasks_fault(schema: Any) -> None:
    with pytest.raises(InvalidInputError, match="reference of json_schema"):
        judge(JSON, "{}", {"schema": schema})


def test_a_schema_elsewhere_is_never_fetched(tmp_path: Path) -> None:
    elsewhere = tmp_path / "schema.json"
    elsewhere.write_text("{}")
    with pytest.raises(InvalidInputError, match="must point into the schema"):
        judge(JSON, "{}", {"schema": {"$ref": elsewhere.as_uri()}})


@pytest.mark.parametrize(
    ("divisor", "response", "correct"),
    [
        (0.01, "0.07", 1),
        (0.01, "0.075", 0),
        (0.01, "1e300", 1),
        (0.01, "1e400", 0),
        (0.01, "1" + "0" * 400, 1),
        (3, "3" * 1000, 1),
        (3, "1" + "0" * 1000, 0),
        (1e-300, "1e300", 1),
    ],
)
def test_multiples_are_those_of_the_decimal_digits(divisor: float, response: str, correct: float) -> None:
    assert judge(JSON, response, {"schema": {"multipleOf": divisor}}).reward == correct


def test_a_text_that_makes_a_pattern_of_the_schema_backtrack_for_ever_is_wrong() -> None:
    verdict = judge(JSON, f'"{"a" * 64}"', {"schema": {"pattern": "^(a+)+$b"}})
    assert verdict.parts == {"correct": 0, "valid": 1}


def test_an_unusable_pattern_of_a_schema_is_the_tasks_fault() -> None:
    with pytest.raises(InvalidInputError, match="reference of json_schema"):
        judge(JSON, '"a"', {"schema": {"pattern": "("}})


def test_a_reference_within_the_schema_is_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}
    assert judge(JSON, "[1, 2]", {"schema": schema}).reward == 1
    assert judge(JSON, "[1, 2.5]", {"schema": schema}).reward == 0
