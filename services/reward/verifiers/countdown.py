"""Countdown: does the expression use exactly the given numbers, and does it reach the target?"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from services.reward.verifiers.base import CORRECT, Item, Verdict, Verifier
from shared.errors import InvalidInputError

CORRECT_REWARD = 1.0
VALID_REWARD = 0.1  # uses the numbers, misses the target: enough to keep the form while the search goes on

# Far above what a policy needs; it bounds the parser's depth and the size of products.
_MAX_CHARACTERS = 256
_MAX_DIGITS = 9


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


class ExpressionError(ValueError):
    """The text is no expression."""


def evaluate(text: str) -> tuple[int, list[int]]:
    """The value of an arithmetic expression and the numbers in it, by recursive descent.

    Grammar: sum = product (("+" | "-") product)*; product = atom ("*" atom)*; atom = digits | "(" sum ")".

    Raises:
        ExpressionError: anything else, or more than 256 characters.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ExpressionError(f"{len(text)} characters; at most {_MAX_CHARACTERS}")
    parser = _Parser(text.replace(" ", ""))
    value = parser.sum()
    if parser.rest:
        raise ExpressionError(f"unexpected {parser.rest[:8]!r}")
    return value, parser.numbers


class _Parser:
    def __init__(self, text: str) -> None:
        self.rest = text
        self.numbers: list[int] = []

    def sum(self) -> int:
        value = self._product()
        while self.rest[:1] in ("+", "-"):
            if self._take() == "+":
                value += self._product()
            else:
                value -= self._product()
        return value

    def _product(self) -> int:
        value = self._atom()
        while self.rest[:1] == "*":
            self._take()
            value *= self._atom()
        return value

    def _atom(self) -> int:
        if self.rest[:1] == "(":
            self._take()
            value = self.sum()
            if self.rest[:1] != ")":
                raise ExpressionError("missing )")
            self._take()
            return value
        digits = ""
        while self.rest[:1].isascii() and self.rest[:1].isdigit():
            digits += self._take()
        if not 0 < len(digits) <= _MAX_DIGITS:
            raise ExpressionError(f"expected a number at {self.rest[:8]!r}")
        self.numbers.append(int(digits))
        return self.numbers[-1]

    def _take(self) -> str:
        character, self.rest = self.rest[0], self.rest[1:]
        return character


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
