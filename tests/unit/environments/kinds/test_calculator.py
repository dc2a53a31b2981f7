"""The calculator answers expressions, and leaves the answer to a verifier."""

import asyncio

import pytest

from routershift.trajectory import FinishReason, Role
from services.environments.base import Action, Step, TextObservation
from services.environments.kinds.calculator import CalculatorEnvironment, CalculatorSettings


def says(environment: CalculatorEnvironment, text: str, reason: FinishReason = FinishReason.STOP) -> Step:
    return asyncio.run(environment.step(Action(text, reason)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3*7+5?", "26;"),
        ("(1-9)*2?", "-16;"),
        ("?", "error;"),
        ("3**7?", "error;"),
        ("9" * 9 + "*9" * 100 + "?", f"{999999999 * 9**100};"),
        ("(" * 300 + "?", "error;"),
        ("__import__('os')?", "error;"),
        ("1" * 10 + "?", "error;"),
        ("1/0?", "error;"),
        ("7\ud800?", "error;"),
    ],
)
def test_an_expression_is_answered_with_its_value(text: str, value: str) -> None:
    assert says(CalculatorEnvironment(CalculatorSettings()), text) == Step(TextObservation(value, Role.TOOL))


@pytest.mark.parametrize("reason", FinishReason)
@pytest.mark.parametrize("text", ["3*7+5", "", "3?+5", "?5"])
def test_any_other_turn_is_the_answer(text: str, reason: FinishReason) -> None:
    assert says(CalculatorEnvironment(CalculatorSettings()), text, reason) == Step(is_done=True)


def test_more_values_than_allowed_end_the_episode() -> None:
    environment = CalculatorEnvironment(CalculatorSettings(checks=2, ask="!", end="", error="x"))
    assert environment.stop == ("!",)
    assert [says(environment, text).is_done for text in ("1+1!", "1+!", "1+1!")] == [False, False, True]
    assert not environment.rewards
