"""One expression: LaTeX to sympy, and whether two of them are the same."""

import random
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

from services.reward.verifiers.math.evaluation import (
    UndefinedError,
    UnknownFunctionError,
    Value,
    evaluate,
    exact,
    mp,
    mpf,
    opaque,
)

# Units are split off before, and boxes are open already.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
MAX_DEPTH = 8  # of brackets: the parser takes a tenth of a second for eight levels, and twice that for each more
_MAX_BARS = 8  # of absolute values, for the same reason
_MAX_SUBSCRIPTS = 20
_HUGE_EXPONENT = re.compile(r"\d[eE][-+ ]*\d{4}")  # 1e9999, which the parser writes out
# What the parser computes while it reads, where the arguments are more than a few digits.
_COMPUTED = re.compile(r"\\(?:operatorname|gcd|lcm|Gamma|gamma|det|begin\s*\{(?:vmatrix|Vmatrix)\})")
_LARGE = re.compile(r"\d{5}|[!^]")
_POINTS = 8
_DEFINED = 2  # points at which both are to be real, or complex numbers are compared
_CLOSE = mpf(10) ** -15


class _Parser(_Latex2Sympy):  # type: ignore[misc]  # untyped
    """The parser of math-verify, which leaves binomials and exponentials as they are written."""

    def convert_binom(self, binom: Any) -> Any:
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)

    def handle_exp(self, func: Any) -> Any:
        power = func.supexpr()
        if not power:
            return sympy.E
        exponent = self.convert_expr(power.expr()) if power.expr() else self.convert_atom(power.atom())
        return sympy.exp(exponent, evaluate=False)


@lru_cache(maxsize=4096)
def parse(latex: str) -> Any:
    """The sympy object, not evaluated, or None where it cannot be read."""
    if (
        not latex
        or depth(latex) > MAX_DEPTH
        or latex.count("|") > _MAX_BARS
        or latex.count("_") > _MAX_SUBSCRIPTS
        or _HUGE_EXPONENT.search(latex)
    ):
        return None
    if _COMPUTED.search(latex) and _LARGE.search(latex):
        return None
    try:
        text = normalize_latex(latex, _NORMALIZATION)
        expression = _Parser(is_real=True).parse(text)
        if not isinstance(expression, sympy.Basic | sympy.MatrixBase):
            return None
        return expression.doit() if expression.has(*_TO_COMPUTE) else expression
    except Exception:  # the grammar raises bare Exceptions, and sympy what it likes
        return None


_TO_COMPUTE = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)


def spelled(latex: str) -> str:
    return "".join(str(normalize_latex(latex, _NORMALIZATION)).split())


def depth(text: str) -> int:
    """How deep brackets and braces of any kind are nested."""
    deepest = level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    return deepest


def number(expression: Any) -> Value | None:
    """The number that an expression without variables is, or None."""
    if not isinstance(expression, sympy.Expr) or opaque(expression):
        return None
    for real in (True, False):
        try:
            return evaluate(expression, {}, real)
        except (UndefinedError, UnknownFunctionError):
            continue
    return None


def same(a: Any, b: Any, decimals: int) -> bool:
    """Are they one number, or equal wherever both are real numbers?

    A decimal is equal to what rounds to it at so many places, and is relatively near. Expressions in variables are
    compared at a few points (Schwartz and Zippel, with 50 digits): different values are a proof, equal ones are one
    but for an accident of probability zero.

    Raises:
        TooLargeError: a number has more digits than any answer.
    """
    if a == b:
        return True
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return False
    if not opaque(a) and not opaque(b):
        return _same_number(a, b, decimals)
    pairs = list(at_points(a, b))
    return bool(pairs) and all(close(x, y) for x, y in pairs)


def _same_number(a: Any, b: Any, decimals: int) -> bool:
    try:
        first, second = exact(a), exact(b)
    except UndefinedError:
        return False
    rounded = a.has(sympy.Float) or b.has(sympy.Float)
    if first is not None and second is not None and not rounded:
        return first == second
    x, y = number(a), number(b)
    if x is None or y is None:
        return False
    if not rounded:
        return close(x, y)
    gap, size = abs(x.number - y.number), max(abs(x.number), abs(y.number))
    return bool(gap <= mpf(10) ** -decimals / 2 * (1 + _CLOSE) and gap <= mpf(10) ** (1 - decimals) * size)


def close(x: Value, y: Value) -> bool:
    """Equal within their errors, which are small."""
    if mp.isinf(x.number) or mp.isinf(y.number):
        return bool(x.number == y.number)
    errors = x.error + y.error
    size = max(abs(x.number), abs(y.number))
    small = errors <= _CLOSE * (size if size > 8 * errors else 1)
    return bool(small and abs(x.number - y.number) <= 4 * errors)


def at_points(a: Any, b: Any, distinct: bool = True) -> Iterator[tuple[Value, Value]]:
    """Their values at points where both are real numbers; where there are hardly any, also at others.

    With `distinct`, up to the first at which they differ.
    """
    names = sorted(opaque(a) | opaque(b))
    points = [_point(names, index) for index in range(_POINTS)]
    for real in (True, False):
        pairs: list[tuple[Value, Value]] = []
        for point in points:
            try:
                pairs.append((evaluate(a, point, real), evaluate(b, point, real)))
            except UndefinedError:
                continue
            except UnknownFunctionError:
                return
            if distinct and len(pairs) >= _DEFINED and not close(*pairs[-1]):
                break
        if len(pairs) >= _DEFINED:
            yield from pairs
            return


def _point(names: list[str], index: int) -> dict[str, Any]:
    """Numbers from 0.05 to 3 or so; all positive at every second point."""
    chance = random.Random(index)  # noqa: S311  # the same in every process
    scale = (1, 3, 0.5, 2)[index // 2 % 4]
    signs = (1,) if index % 2 == 0 else (-1, 1)
    return {name: mpf(chance.randrange(50_000, 999_983)) / 1_000_003 * scale * chance.choice(signs) for name in names}
