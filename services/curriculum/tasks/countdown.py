"""The Countdown task: make a target from three numbers, each used exactly once, with + - * and parentheses."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, permutations
from typing import Any, ClassVar

import numpy as np

from services.curriculum.tasks.base import Task
from shared.errors import InvalidInputError

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
_BINDING = {"+": 1, "-": 1, "*": 2}
_HELD_OUT_SHARE = 10  # one problem in ten is never trained on
# Keeps the held-out draw apart from every training seed; its value has no meaning.
_HELD_OUT_STREAM = 2**63


@dataclass(frozen=True)
class Problem:
    """Three numbers and a target that some expression over them reaches."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """What the policy reads, such as `3,7,5:26=`; a response is an expression such as `3*7+5`."""
        return f"{','.join(map(str, self.numbers))}:{self.target}="

    @property
    def reference(self) -> dict[str, Any]:
        """What the verifier compares a response with."""
        return {"numbers": list(self.numbers), "target": self.target}

    @property
    def canonical(self) -> str:
        """Equal for problems that differ only in the order of their numbers."""
        return Problem(tuple(sorted(self.numbers)), self.target).prompt

    @property
    def is_held_out(self) -> bool:
        """Decided by the problem itself, so that no seed can train on what another seed evaluates."""
        return hashlib.sha256(self.canonical.encode()).digest()[0] % _HELD_OUT_SHARE == 0

    @cached_property
    def solutions(self) -> tuple[str, ...]:
        """All expressions that reach the target, in a fixed order; those without parentheses come first."""
        texts = {text for text, value in expressions(self.numbers) if value == self.target}
        return tuple(sorted(texts, key=lambda text: (len(text), text)))


class Countdown(Task):
    """Problems over numbers up to `max_number` with targets up to `max_target`."""

    name: ClassVar[str] = "countdown"
    verifier: ClassVar[str] = "countdown"

    def __init__(self, seed: int, max_number: int = 20, max_target: int = 99) -> None:
        super().__init__(seed)
        self._max_number = max_number
        self._max_target = max_target

    def train(self, index: int) -> Problem:
        """Training problem `index`, counted from 0."""
        return next(p for p in self._draw(np.random.default_rng((self.seed, index))) if not p.is_held_out)

    def held_out(self, count: int) -> list[Problem]:
        """`count` distinct held-out problems, the same for every seed; a smaller count gives a prefix of a larger.

        Raises:
            InvalidInputError: there are not that many.
        """
        problems, weights = [], []
        for numbers in combinations_with_replacement(range(1, self._max_number + 1), 3):
            orders = len(set(permutations(numbers)))
            for target, ways in Counter(value for _, value in expressions(numbers)).items():
                if 1 <= target <= self._max_target and (problem := Problem(numbers, target)).is_held_out:
                    problems.append(problem)
                    weights.append(ways * orders)
        if count > len(problems):
            raise InvalidInputError(
                f"held-out count is {count}; there are {len(problems)} such problems, ask for fewer"
            )
        # The order of arrival at these rates is that in which training draws would first meet them.
        rng = np.random.default_rng(_HELD_OUT_STREAM)
        arrival = rng.exponential(1 / np.array(weights))
        chosen = (problems[i] for i in np.argsort(arrival)[:count])
        return [Problem(tuple(int(n) for n in rng.permutation(p.numbers)), p.target) for p in chosen]

    def _draw(self, rng: np.random.Generator) -> Iterator[Problem]:
        """Numbers uniform in [1, max_number]; the target is what a random expression over them happens to reach."""
        while True:
            numbers = tuple(int(n) for n in rng.integers(1, self._max_number + 1, size=3))
            values = [value for _, value in expressions(numbers)]
            target = values[rng.integers(len(values))]
            if 1 <= target <= self._max_target:
                yield Problem(numbers, target)


def expressions(numbers: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Every expression over three numbers, with the parentheses it needs, and its value."""
    for a, b, c in permutations(numbers):
        for first, apply_first in _OPERATIONS.items():
            for second, apply_second in _OPERATIONS.items():
                left = f"({a}{first}{b})" if _BINDING[first] < _BINDING[second] else f"{a}{first}{b}"
                yield f"{left}{second}{c}", apply_second(apply_first(a, b), c)
                right = (
                    f"({b}{second}{c})" if first != "+" and _BINDING[second] <= _BINDING[first] else f"{b}{second}{c}"
                )
                yield f"{a}{first}{right}", apply_first(a, apply_second(b, c))
