"""Are two answers the same? Symmetric: neither of the two is the reference here.

Importing it loads sympy, so that only the processes that judge mathematics pay for it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy

from services.reward.verifiers.math import notation, scalars, structure, units
from services.reward.verifiers.math.evaluation import TooLargeError, mp, mpf
from services.reward.verifiers.math.regions import Region
from services.reward.verifiers.math.structure import Items, Matrix, Relation, Scalar, Structure

# \textbf{(B)}\ 12, as the answers of the AMC are written
_LABELLED = re.compile(
    r"(?:\\(?:text|textbf|textrm|mathrm|mathbf) ?\{ ?)?\((?P<label>[A-J])\)(?: ?\})? (?P<rest>[^+*/^=<>-].*)"
)
_PERCENT = re.compile(r" ?\\?%$")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer by itself."""

    text: str
    words: bool
    number: bool
    readable: bool


@lru_cache(maxsize=2048)
def read(text: str) -> Answer:
    cleaned = notation.clean(text)
    quantity, _ = units.split(cleaned, letters_are_units=False)
    words = notation.is_words(cleaned)
    readable = words or not notation.is_prose(cleaned)
    return Answer(cleaned, words, notation.is_number(quantity), readable)


def parse(answer: Answer) -> Structure | None:
    """What the answer is, by itself; None where it cannot be read."""
    return structure.read(units.split(answer.text, letters_are_units=False)[0])


def is_left_to_compute(answer: Answer, gold: Answer) -> bool:
    """Does it ask what the reference has computed, as 12 \\times 13 does where the reference is 156?"""
    quantity, _ = units.split(answer.text, letters_are_units=gold.number)
    return answer.text != gold.text and notation.needs_work(quantity, gold.text, gold.number)


def equal(a: Answer, b: Answer, decimals: int) -> tuple[bool, bool]:
    """Whether they are the same, and whether both can be read. Equal texts are the same, whatever they say."""
    if a.text == b.text:
        return True, True
    if a.words or b.words:
        said = notation.words(a.text)
        return said != "" and said == notation.words(b.text), True
    labels = _LABELLED.fullmatch(a.text), _LABELLED.fullmatch(b.text)
    if any(labels):
        return _with_labels(a, b, labels, decimals), True
    if not (a.readable and b.readable):
        return False, False
    try:
        verdict = _quantities(a, b, decimals)
    except TooLargeError:
        return False, True
    if verdict is None:
        same = scalars.spelled(a.text) == scalars.spelled(b.text)
        return same, same
    return verdict, True


def _with_labels(a: Answer, b: Answer, labels: tuple[re.Match[str] | None, ...], decimals: int) -> bool:
    """The label and what it labels, where both have both; else the one that the other names."""
    first, second = labels
    if first and second:
        return first["label"] == second["label"] and equal(read(first["rest"]), read(second["rest"]), decimals)[0]
    label, other = (first, b) if first else (second, a)
    if label is None:
        return False
    return other.text == label["label"] or equal(read(label["rest"]), other, decimals)[0]


def _quantities(a: Answer, b: Answer, decimals: int) -> bool | None:
    """None where one of them cannot be read."""
    first, unit = units.split(a.text, letters_are_units=b.number)
    second, other_unit = units.split(b.text, letters_are_units=a.number)
    bases = notation.base(first), notation.base(second)
    if bases[0] and bases[1]:
        return bases[0] == bases[1]
    if unit and other_unit and unit.dimension != other_unit.dimension:
        return False
    x, y = structure.read(_without_percent(first, bases[0])), structure.read(_without_percent(second, bases[1]))
    if x is None or y is None:
        return None
    if isinstance(x, Relation) is not isinstance(y, Relation):
        first_value, second_value = _valued(x, y), _valued(y, x)
        if first_value is None or second_value is None:
            return False
        x, y = first_value, second_value
    if isinstance(x, Scalar) and isinstance(y, Scalar):
        ratio = unit.factor / other_unit.factor if unit and other_unit else Fraction(1)
        if ratio != 1:
            x = Scalar(sympy.Mul(x.expression, sympy.Rational(ratio.numerator, ratio.denominator), evaluate=False))
        percent = _PERCENT.search(first) is not None, _PERCENT.search(second) is not None
        if percent[0] is not percent[1]:
            return _same_percent(*((x, y) if percent[0] else (y, x)), decimals)
    elif unit and other_unit and unit.factor != other_unit.factor:
        return False
    return same(x, y, decimals)


def _without_percent(quantity: str, base: tuple[str, str] | None) -> str:
    """Without its percent sign; of a number with its base, 1010_2, the digits, for one that names no base."""
    return base[0] if base and base[0].lstrip("-").isdigit() else _PERCENT.sub("", quantity)


def _same_percent(percent: Scalar, plain: Scalar, decimals: int) -> bool:
    """50% is 0.5, and is 50 too, for a question that asks how many percent; but 0.5% is never 0.5."""
    value = scalars.number(percent.expression)
    hundredth = sympy.Mul(percent.expression, sympy.Rational(1, 100), evaluate=False)
    if scalars.same(hundredth, plain.expression, decimals):
        return True
    return value is not None and abs(value.number) >= 1 and scalars.same(percent.expression, plain.expression, decimals)


def _valued(one: Structure, other: Structure) -> Structure | None:
    return structure.value(one) if isinstance(one, Relation) and not isinstance(other, Items) else one


def same(a: Structure, b: Structure, decimals: int) -> bool:
    """Raises TooLargeError."""
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        return scalars.same(a.expression, b.expression, decimals)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _same_relation(a, b)
    if isinstance(a, Relation) or isinstance(b, Relation):
        value_a, value_b = _valued(a, b), _valued(b, a)
        if isinstance(value_a, Relation) or isinstance(value_b, Relation) or value_a is None or value_b is None:
            return False
        return same(value_a, value_b, decimals)
    if isinstance(a, Region) or isinstance(b, Region):
        first, second = structure.region(a), structure.region(b)
        return first is not None and second is not None and first.same(second)
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return [len(row) for row in a.rows] == [len(row) for row in b.rows] and all(
            scalars.same(x, y, decimals)
            for row, other in zip(a.rows, b.rows, strict=True)
            for x, y in zip(row, other, strict=True)
        )
    if isinstance(a, Items) and isinstance(b, Items):
        return _same_items(a, b, decimals)
    one = a if isinstance(a, Items) else b
    if isinstance(one, Items) and one.brackets in ("{", "") and len(one.items) == 1:
        return same(one.items[0], b if one is a else a, decimals)
    return False


def _same_items(a: Items, b: Items, decimals: int) -> bool:
    if a.brackets != b.brackets and a.brackets and b.brackets:
        return False
    if a.brackets in ("{", "") and b.brackets in ("{", ""):
        first, second = _point(a), _point(b)
        if (first is None) is (second is None):
            return _each_in(a.items, b.items, decimals) and _each_in(b.items, a.items, decimals)
        x, y = first or a.items, second or b.items  # x = 2, y = 3 is the point (2, 3)
    else:
        listed = a if a.brackets == "" else b
        if a.brackets != b.brackets:
            closed = {a.brackets, b.brackets} - {"", "()"}
            if "{" in closed or (closed and len(listed.items) == 2):  # [1, 2] is an interval
                return False
        x, y = _point(a) or a.items, _point(b) or b.items
    return len(x) == len(y) and all(same(p, q, decimals) for p, q in zip(x, y, strict=True))


def _point(items: Items) -> tuple[Structure, ...] | None:
    """The values of "y = 3, x = 2" in the order of the names; None where there are not several names."""
    relations = [item for item in items.items if isinstance(item, Relation) and len(item.sides) == 2]
    names = [item.names[0] for item in relations]
    if len(relations) < 2 or len(relations) < len(items.items) or len(set(names)) < len(names):
        return None
    values = [structure.value(item) for _, item in sorted(zip(names, relations, strict=True), key=lambda pair: pair[0])]
    known = [value for value in values if value is not None]
    return tuple(known) if len(known) == len(values) else None


def _each_in(items: Iterable[Structure], others: tuple[Structure, ...], decimals: int) -> bool:
    return all(any(same(item, other, decimals) for other in others) for item in items)


def _same_relation(a: Relation, b: Relation) -> bool:
    """One is a multiple of the other, as y = 2x + 1 and 2x - y + 1 = 0 are; of inequalities, a positive one."""
    if None in a.sides or None in b.sides:
        return scalars.spelled(a.names[0]) == scalars.spelled(b.names[0]) and _ends(a, b)
    if set(a.operators) == set(b.operators) == {"="}:
        return _proportional(_difference(a, -1), _difference(b, -1), positive=False)
    first, second = _ascending(a), _ascending(b)
    return first.operators == second.operators and all(
        _proportional(_difference(first, i), _difference(second, i), positive=first.operators[i - 1] != "\\ne")
        for i in range(1, len(first.sides))
    )


def _ends(a: Relation, b: Relation) -> bool:
    x, y = structure.value(a), structure.value(b)
    return x is not None and y is not None and same(x, y, decimals=6)


def _ascending(relation: Relation) -> Relation:
    """With < and \\le only, where it has > or \\ge."""
    turned = {">": "<", "\\ge": "\\le"}
    if not any(operator in turned for operator in relation.operators):
        return relation
    back = {"<": ">", "\\le": "\\ge", **turned}
    return Relation(
        tuple(back.get(operator, operator) for operator in reversed(relation.operators)),
        relation.sides[::-1],
        relation.names[::-1],
    )


def _difference(relation: Relation, index: int) -> Any:
    left = relation.sides[0] if index == -1 else relation.sides[index - 1]
    return sympy.Add(left, sympy.Mul(-1, relation.sides[index], evaluate=False), evaluate=False)


def _proportional(a: Any, b: Any, positive: bool) -> bool:
    """Is a a constant multiple of b, and neither always zero?"""
    pairs = list(scalars.at_points(a, b, distinct=False))
    if not pairs:
        return False
    x, y = pairs[0]
    if abs(x.number) <= 4 * x.error or abs(y.number) <= 4 * y.error:
        return False
    ratio = x.number / y.number
    if positive and not (abs(mp.im(ratio)) <= mpf(10) ** -30 and mp.re(ratio) > 0):
        return False
    size = abs(ratio)
    return all(
        abs(p.number - ratio * q.number) <= mpf(10) ** -20 * (abs(p.number) + size * abs(q.number) + 1)
        for p, q in pairs
    )
