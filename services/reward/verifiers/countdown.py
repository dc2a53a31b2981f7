"""Countdown: does the expression use exactly the given numbers, and does it reach the target?"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from services.reward.verifiers.base import CORRECT, Item, Verdict, Verifier
from shared.arithmetic import ExpressionError, evaluate
from shared.errors import InvalidInputError

CORRECT_REWARD = 1.0
VALID_REWARD = 0.1  # uses the numbers, misses the target: enough to keep the form while the search goes on


class CountdownVerifier(Verifier):
    """Reference: {"numbers": [3, 7, 5], "target": 26}. Each number must be used exactly once, with + - * and ()."""

    name: ClassVar[str] = "countdown"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "an expression over the given numbers, each used once, that equals the target"
    thinking: ClassVar[bool] = False
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["numbers", "target"],
        "properties": {
            "numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "target": {"type": "integer"},
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": CORRECT,
        "valid": "1 where the response is an expression over exactly the given numbers",
    }

    def verify(self, item: Item) -> Verdict:
        numbers, target = _read_reference(item.reference)
        try:
            value, used = evaluate(self.text(item))
        except ExpressionError:
            return _verdict(valid=False, correct=False)
        valid = Counter(used) == Counter(numbers)
        return _verdict(valid, valid and value == target)


def _read_reference(reference: Mapping[str, Any]) -> tuple[list[int], int]:
    try:
        numbers = [_whole(n) for n in reference["numbers"]]
        if not numbers:
            raise ValueError
        return numbers, _whole(reference["target"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            f"reference of countdown is {dict(reference)}; expected {{'numbers': [integers], 'target': integer}}, with "
            "one number at least"
        ) from None


def _whole(number: Any) -> int:
    """JSON and Struct know only doubles. Raises ValueError for one that is no integer."""
    if int(number) != number:
        raise ValueError(number)
    return int(number)


def _verdict(valid: bool, correct: bool) -> Verdict:
    reward = CORRECT_REWARD if correct else VALID_REWARD if valid else 0.0
    return Verdict(reward, {"correct": float(correct), "valid": float(valid)})
