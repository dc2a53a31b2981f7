"""Sets of real numbers: intervals, single points, and what unions and the like make of them.

A region is known by where it may begin or end, and by a test for any number. Two are the same where both give the same
results at all their ends and between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from services.reward.verifiers.math.evaluation import (
    NotComputedError,
    evaluate,
    mp,
    mpf,
    opaque,
)

_MAX_ENDS = 200
_NEAR = mpf(10) ** -30


@dataclass(frozen=True, slots=True)
class Region:
    """`variable` is that of the inequality that describes it; None where there was none."""

    ends: tuple[Any, ...]
    contains: Callable[[Any], bool]
    variable: str | None = None

    @classmethod
    def of_inequality(cls, left: Any, operator: str, right: Any) -> Self | None:
        """The region of an inequality that is linear in one variable; None for any other."""
        names = opaque(left) | opaque(right)
        if len(names) != 1:
            return None
        (variable,) = names
        try:
            at = [
                evaluate(left, {variable: mpf(x)}, real=True).number
                - evaluate(right, {variable: mpf(x)}, real=True).number
                for x in (0, 1, -5, 11)
            ]
        except NotComputedError:
            return None
        slope = at[1] - at[0]
        if slope == 0 or any(not _near(at[0] + slope * x, y) for x, y in ((-5, at[2]), (11, at[3]))):
            return None
        end = -at[0] / slope
        if operator == "\\ne":
            return cls((end,), lambda x: not _near(x, end), variable)
        closed = operator in ("\\le", "\\ge")
        upper = (operator in (">", "\\ge")) == bool(slope > 0)
        return cls((end,), lambda x: closed if _near(x, end) else bool(x > end) is upper, variable)

    def union(self, other: "Region") -> "Region":
        return self._with(other, lambda x: self.contains(x) or other.contains(x))

    def both(self, other: "Region") -> "Region":
        return self._with(other, lambda x: self.contains(x) and other.contains(x))

    def without(self, other: "Region") -> "Region":
        return self._with(other, lambda x: self.contains(x) and not other.contains(x))

    def same(self, other: "Region") -> bool:
        if None not in (self.variable, other.variable) and self.variable != other.variable:
            return False
        ends = sorted(end for end in {*self.ends, *other.ends} if not mp.isinf(end))
        if len(ends) > _MAX_ENDS:
            return False
        distinct = [end for end, following in pairwise([*ends, mpf("inf")]) if not _near(end, following)]
        if not distinct:
            return self.contains(mpf(0)) == other.contains(mpf(0))
        between = [(a + b) / 2 for a, b in pairwise(distinct)]
        points = [distinct[0] - 1, *distinct, *between, distinct[-1] + 1]
        return all(self.contains(x) == other.contains(x) for x in points)

    def _with(self, other: "Region", contains: Callable[[Any], bool]) -> "Region":
        if None not in (self.variable, other.variable) and self.variable != other.variable:
            return Region((), lambda x: False, f"{self.variable},{other.variable}")
        return Region((*self.ends, *other.ends), contains, self.variable or other.variable)


def everything() -> Region:
    return Region((), lambda x: True)


def nothing() -> Region:
    return Region((), lambda x: False)


def single(number: Any) -> Region:
    return Region((number,), lambda x: _near(x, number))


def interval(start: Any, end: Any, closed_start: bool, closed_end: bool) -> Region:
    def contains(x: Any) -> bool:
        if _near(x, start):
            return closed_start
        if _near(x, end):
            return closed_end
        return bool(start < x < end)

    return Region((start, end), contains)


def _near(a: Any, b: Any) -> bool:
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    return bool(abs(a - b) <= _NEAR * max(1, abs(a), abs(b)))
