"""The Countdown verifier against Python's own arithmetic, and against everything that is no expression."""

import ast
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.verifiers.base import Item, VerifierSettings
from services.reward.verifiers.countdown import CountdownVerifier
from shared.arithmetic import ExpressionError, evaluate
from shared.errors import InvalidInputError

VERIFIER = CountdownVerifier(VerifierSettings())
REFERENCE = {"numbers": [3.0, 7.0, 5.0], "target": 26.0}  # a Struct's numbers are doubles

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}

expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner, st.booleans()).map(
        lambda parts: f"({parts[0]}{parts[1]}{parts[2]})" if parts[3] else f"{parts[0]}{parts[1]}{parts[2]}"
    ),
    max_leaves=6,
)


def reference_value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return int(_OPERATORS[type(node.op)](reference_value(node.left), reference_value(node.right)))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value


@given(expressions)
def test_values_are_those_of_pythons_own_grammar(text: str) -> None:
    assert evaluate(text)[0] == reference_value(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("response", "reward", "correct", "valid"),
    [
        ("3*7+5", 1.0, 1, 1),
        ("5+7*3", 1.0, 1, 1),
        (" ( 3 * 7 ) + 5 ", 1.0, 1, 1),
        ("(3+7)*5", 0.1, 0, 1),
        ("26", 0.0, 0, 0),
        ("3*7+5+0", 0.0, 0, 0),
        ("3*7", 0.0, 0, 0),
        ("3*7+5+5-5", 0.0, 0, 0),
        ("", 0.0, 0, 0),
        ("3*7+5=26", 0.0, 0, 0),
        ("3*7+", 0.0, 0, 0),
        ("(3*7+5", 0.0, 0, 0),
        ("3**7+5", 0.0, 0, 0),
        ("-3*7+5", 0.0, 0, 0),
        ("3*7+٥", 0.0, 0, 0),
        ("__import__('os')", 0.0, 0, 0),
        ("(" * 300, 0.0, 0, 0),
        ("9" * 200, 0.0, 0, 0),
    ],
)
def test_verdicts(response: str, reward: float, correct: float, valid: float) -> None:
    verdict = VERIFIER.verify(Item("", response, REFERENCE))
    assert verdict.reward == reward
    assert verdict.parts == {"correct": correct, "valid": valid}


@given(st.text(max_size=300))
def test_any_text_has_a_verdict(text: str) -> None:
    assert VERIFIER.verify(Item("", text, REFERENCE)).reward in (0.0, 0.1, 1.0)


def test_depth_is_bounded() -> None:
    assert evaluate("(" * 100 + "1" + ")" * 100) == (1, [1])
    with pytest.raises(ExpressionError):
        evaluate("(" * 200 + "1" + ")" * 200)


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"numbers": [1]},
        {"numbers": "no", "target": 1},
        {"numbers": [1.5], "target": 1},
        {"numbers": [1], "target": float("inf")},
    ],
)
def test_an_unusable_reference_is_the_tasks_fault(reference: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="reference of countdown"):
        VERIFIER.verify(Item("", "1", reference))
