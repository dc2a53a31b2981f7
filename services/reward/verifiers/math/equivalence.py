"""Are two answers the same? math-verify decides; this module reads them for it and refuses what it lets through.

Importing it loads sympy, so that only the processes that judge mathematics pay for it.
"""

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import math_verify
from latex2sympy2_extended import NormalizationConfig, is_expr_of_only_symbols, latex2sympy, normalize_latex
from sympy import Expr, FiniteSet, I, Integer, Pow, Rational, Union, factorial, preorder_traversal
from sympy.core.relational import Eq, Relational

from services.reward.verifiers.math import notation, units

# Said once a process: that its signal-based timeouts are off. They are, because the process is killed instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# Units are split off before, and boxes are open already.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_MAX_DEPTH = 8  # of brackets: the parser takes a second for eight levels, and twice that for each more
# Larger numbers are no answers; sympy would take minutes or the whole memory for them.
_MAX_DIGITS = 2000
_MAX_EXPONENT_DIGITS = 3  # of a power that is no number, which sympy may expand


@dataclass(frozen=True, slots=True)
class Gold:
    """A reference answer, read once. `expression` is None where math-verify cannot read it: then texts must agree."""

    text: str
    quantity: str
    unit: units.Unit | None
    words: bool
    number: bool
    expression: Any


@lru_cache(maxsize=1024)
def read_gold(answer: str) -> Gold:
    text = notation.clean(answer)
    quantity, unit = units.split(text, letters_are_units=False)
    said = notation.is_words(text)
    return Gold(
        text, quantity, unit, said, notation.is_number(quantity), None if said else parse(_without_base(quantity))
    )


def judge(gold: Gold, answer: str, decimals: int, unevaluated: bool) -> tuple[bool, bool]:
    """Whether an answer is right, and whether it could be read at all."""
    text = notation.clean(answer)
    if gold.words:
        said = notation.words(text)
        return said != "" and said == notation.words(gold.text), said != ""
    if text == gold.text or (gold.expression is None and _spelled(text) == _spelled(gold.text)):
        return True, True
    if gold.expression is None:
        return False, text != ""
    if notation.is_prose(text) or notation.depth(text) > _MAX_DEPTH:
        return False, False
    quantity, unit = units.split(text, letters_are_units=gold.number)
    ours, theirs = notation.base(gold.quantity), notation.base(quantity)
    if ours and theirs:
        return ours == theirs, True
    if _contradict(gold, quantity, unit):
        return False, True
    if not unevaluated and notation.needs_work(quantity, gold.text, gold.number):
        return False, True
    if notation.brackets(quantity) == "(" != notation.brackets(gold.text):
        gold = read_gold(notation.point(gold.text))
    elif notation.brackets(gold.text) == "(":
        quantity = notation.point(quantity)
    expression = parse(_without_base(quantity))
    if expression is None:
        return False, False
    if _too_large(expression):
        return False, True
    if gold.unit and unit and gold.unit.factor != unit.factor and isinstance(expression, Expr):
        ratio = unit.factor / gold.unit.factor
        expression = expression * Rational(ratio.numerator, ratio.denominator)
    return _equal(gold, text, expression, decimals), True


def parse(latex: str) -> Any:
    """The sympy object, unevaluated, or None where it cannot be read."""
    try:
        return latex2sympy(
            normalize_latex(latex, _NORMALIZATION), is_real=True, convert_degrees=False, normalization_config=None
        )
    except Exception:  # the grammar raises bare Exceptions, and sympy what it likes
        return None


def _spelled(latex: str) -> str:
    return "".join(str(normalize_latex(latex, _NORMALIZATION)).split())


def _without_base(quantity: str) -> str:
    """A number with its base, 1010_2, is compared by its digits with one that names none."""
    found = notation.base(quantity)
    return found[0] if found and found[0].lstrip("-").isdigit() else quantity


def _contradict(gold: Gold, quantity: str, unit: units.Unit | None) -> bool:
    """Do both name units, of different kinds, or both brackets, of different kinds?"""
    if gold.unit and unit and gold.unit.dimension != unit.dimension:
        return True
    mine, other = notation.brackets(gold.quantity), notation.brackets(quantity)
    return mine != other and mine != "" and other != ""


def _equal(gold: Gold, text: str, expression: Any, decimals: int) -> bool:
    ours, theirs = _as_one_set(gold.expression, gold.text), _as_one_set(expression, text)
    if _has_i(ours) or _has_i(theirs):
        ours, theirs = _with_i(ours), _with_i(theirs)
    if isinstance(theirs, Eq) and not isinstance(ours, Eq) and not _gives_value(theirs):
        return False
    if not math_verify.verify(
        ours, theirs, float_rounding=decimals, allow_set_relation_comp=True, timeout_seconds=None
    ):
        return False
    return "%" in gold.text + text or _close(ours, theirs, decimals)


def _gives_value(equation: Eq) -> bool:
    """Is it "x = 5", or true by itself as "2 + 3 = 5" is? "x + 1 = 5" has the value somewhere else."""
    if is_expr_of_only_symbols(equation.lhs) or (equation.lhs.is_Function and not equation.lhs.is_number):
        return True
    return bool(math_verify.verify(equation.lhs, equation.rhs, timeout_seconds=None))


def _close(ours: Any, theirs: Any, decimals: int) -> bool:
    """math-verify rounds to places after the point, which makes all small numbers equal: ask for relative nearness."""
    if not (isinstance(ours, Expr) and isinstance(theirs, Expr)) or ours.free_symbols or theirs.free_symbols:
        return True
    try:
        a, b = complex(ours), complex(theirs)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(a - b) <= 10.0 ** (1 - decimals) * max(abs(a), abs(b))


def _as_one_set(expression: Any, text: str) -> Any:
    """ "x < 1 or x > 3" is one set and not a list of two relations."""
    if not isinstance(expression, FiniteSet) or "or" not in text:
        return expression
    if not all(isinstance(e, Relational) and not isinstance(e, Eq) for e in expression.args):
        return expression
    if len(expression.free_symbols) != 1:
        return expression
    return Union(*(e.as_set() for e in expression.args))


def _has_i(expression: Any) -> bool:
    return any(s.name == "i" for s in getattr(expression, "free_symbols", ())) or getattr(expression, "has", bool)(I)


def _with_i(expression: Any) -> Any:
    """The parser takes i for a variable."""
    return expression.xreplace({s: I for s in expression.free_symbols if s.name == "i"})


def _too_large(expression: Any) -> bool:
    try:
        nodes = list(preorder_traversal(expression))
    except Exception:
        return False
    return any(_digits(node) > _MAX_DIGITS for node in nodes if isinstance(node, Pow | factorial | Integer))


def _digits(expression: Any) -> float:
    """At most so many decimal digits, by the form alone: nothing is evaluated."""
    if isinstance(expression, Integer):
        return len(str(abs(int(expression)))) if abs(int(expression)).bit_length() < 14000 else math.inf
    if isinstance(expression, factorial):
        return _power(1.0, expression.args[0])
    if isinstance(expression, Pow):
        if expression.base.free_symbols:
            return 0.0 if _digits(expression.exp) <= _MAX_EXPONENT_DIGITS else math.inf
        return _power(_digits(expression.base), expression.exp)
    return sum((_digits(arg) for arg in expression.args), 0.0)


def _power(digits: float, exponent: Any) -> float:
    size = _digits(exponent)
    return math.inf if size > 4 else max(digits, 1.0) * 10.0**size
