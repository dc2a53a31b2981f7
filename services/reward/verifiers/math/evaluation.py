"""What an expression comes to at a point: arithmetic with error bounds, whose work grows with its size alone.

`simplify` and its kin decide more, but in a time that nobody can bound, and a policy under training finds that out. A
value is exact where it is rational, and else has 50 digits and a bound on its error; powers are refused by their size
before they are computed.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import mpmath
import sympy
from sympy.core.function import AppliedUndef

_DIGITS = 50
_MAX_BITS = 7_000  # of a rational number: about 2,000 digits
_MAX_EXPONENT = 1 << 20  # of a rounded number, in bits
_CONSTANTS = {"i": sympy.I, "e": sympy.E}  # which the parser takes for variables
_MAX_ANGLE = 1 << 64  # beyond it, no digit of a sine is left

mp = mpmath.MPContext()  # of our own: sympy has the global one
mp.dps = _DIGITS
mpf = mp.mpf
_EPSILON = mpf(10) ** (2 - _DIGITS)


class NotComputedError(ArithmeticError):
    """There is no value."""


class UndefinedError(NotComputedError):
    """There is no such value: a division by zero, or, over the reals, the root of a negative number."""


class TooLargeError(NotComputedError):
    """No answer is so large; it is not computed."""


class UnknownFunctionError(NotComputedError):
    """Nobody has said here how to compute it."""


class Value(NamedTuple):
    """A real or complex number, and how far off it may be."""

    number: Any
    error: Any


def exact(expression: Any) -> Fraction | None:
    """The rational number that an expression is by +, -, *, /, whole powers and factorials; None where it is not.

    Raises:
        UndefinedError: it divides by zero.
        TooLargeError: it has more than 2,000 digits.
    """
    if isinstance(expression, sympy.Rational):
        return Fraction(int(expression.p), int(expression.q))
    if isinstance(expression, sympy.Float):
        return _decimal(expression)
    if isinstance(expression, sympy.UnevaluatedExpr):
        return exact(expression.args[0])
    if not isinstance(expression, sympy.Add | sympy.Mul | sympy.Pow | sympy.factorial | sympy.binomial | sympy.Abs):
        return None
    values = [exact(arg) for arg in expression.args]
    numbers = [value for value in values if value is not None]
    return None if len(numbers) < len(values) else _small(_combine(expression, numbers))


def _combine(expression: Any, numbers: list[Fraction]) -> Fraction | None:
    if isinstance(expression, sympy.Add):
        return sum(numbers, Fraction(0))
    if isinstance(expression, sympy.Mul):
        product = Fraction(1)
        for number in numbers:
            product *= _small(number) or Fraction(0)
            _small(product)
        return product
    if isinstance(expression, sympy.Abs):
        return abs(numbers[0])
    if isinstance(expression, sympy.Pow):
        return _power(*numbers)
    if any(number.denominator != 1 or number < 0 for number in numbers):
        return None
    whole = [int(number) for number in numbers]
    if isinstance(expression, sympy.factorial):
        if whole[0] > 1000:
            raise TooLargeError
        return Fraction(int(sympy.factorial(whole[0])))
    n, k = whole
    if min(k, n - k) * max(n, 2).bit_length() > _MAX_BITS:
        raise TooLargeError
    return Fraction(int(sympy.binomial(n, k)))


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    if base == 0 and exponent < 0:
        raise UndefinedError
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) not in (0, 1) and abs(exponent) * (bits - 1) > _MAX_BITS:
        raise TooLargeError
    return base ** (int(exponent) if abs(base) not in (0, 1) else int(exponent) % 2 or int(exponent != 0) * 2)


def _small(number: Fraction | None) -> Fraction | None:
    if number is not None and max(number.numerator.bit_length(), number.denominator.bit_length()) > _MAX_BITS:
        raise TooLargeError
    return number


def _decimal(number: Any) -> Fraction | None:
    """The decimal that was written, not the double that is nearest to it."""
    if not number.is_finite or abs(number._mpf_[2]) > _MAX_BITS:
        raise TooLargeError
    return Fraction(str(number))


def evaluate(expression: Any, point: Mapping[str, Any], real: bool) -> Value:
    """The value where the symbols, and what else stands for itself, have those of `point`.

    With `real`, every part is a real number, and an odd root of a negative one is negative; else roots and logarithms
    are the principal ones.

    Raises:
        NotComputedError: one of the three.
    """
    if is_opaque(expression):
        expression = _CONSTANTS.get(name(expression), expression)
    if is_opaque(expression):
        return Value(point[name(expression)], mpf(0))
    if (number := exact(expression) if expression.is_number else None) is not None:
        quotient = mpf(number.numerator) / number.denominator
        return Value(quotient, abs(quotient) * _EPSILON)
    if isinstance(expression, sympy.NumberSymbol):
        constant = mp.mpf(expression._as_mpf_val(mp.prec))
        return Value(constant, constant * _EPSILON)
    if expression is sympy.I:
        if real:
            raise UndefinedError
        return Value(mp.mpc(0, 1), mpf(0))
    if expression in (sympy.oo, -sympy.oo):
        return Value(mpf("inf") if expression is sympy.oo else mpf("-inf"), mpf(0))
    arguments = [evaluate(arg, point, real) for arg in expression.args]
    result = _apply(expression, arguments, real)
    if real and isinstance(result.number, mp.mpc):
        raise UndefinedError
    if mp.isnan(result.number) or mp.isnan(result.error):
        raise UndefinedError
    if not mp.isinf(result.number) and mp.mag(result.number or 1) > _MAX_EXPONENT:
        raise TooLargeError
    return result


def is_opaque(expression: Any) -> bool:
    """Does it stand for itself: x, f(x), dy/dx?"""
    return isinstance(expression, sympy.Symbol | AppliedUndef | sympy.Derivative)


def name(expression: Any) -> str:
    return str(expression.name) if isinstance(expression, sympy.Symbol) else str(expression)


@lru_cache(maxsize=4096)
def opaque(expression: Any) -> frozenset[str]:
    """The names of all that stands for itself in an expression."""
    if is_opaque(expression):
        return frozenset([name(expression)]) - _CONSTANTS.keys()
    return frozenset().union(*(opaque(arg) for arg in expression.args))


def _apply(expression: Any, arguments: list[Value], real: bool) -> Value:
    if isinstance(expression, sympy.Add):
        return Value(
            mp.fsum(a.number for a in arguments), mp.fsum(a.error + abs(a.number) * _EPSILON for a in arguments)
        )
    if isinstance(expression, sympy.Mul):
        product = Value(mpf(1), mpf(0))
        for a in arguments:
            number = product.number * a.number
            error = abs(product.number) * a.error + abs(a.number) * product.error + product.error * a.error
            product = Value(number, mpf(0) if mp.isinf(number) else error + abs(number) * _EPSILON)
        return product
    if isinstance(expression, sympy.Pow):
        exponent = expression.exp
        odd = isinstance(exponent, sympy.Rational) and exponent.q % 2 == 1
        sign = -1 if odd and int(exponent.p) % 2 else 1

        def raised(base: Any, power: Any) -> Any:
            return _raise(base, power, sign if odd else None, real)

        return _perturbed(raised, arguments)
    known = _FUNCTIONS.get(type(expression).__name__)
    if known is None:
        raise UnknownFunctionError(type(expression).__name__)
    return _perturbed(lambda *numbers: known(*numbers), arguments)


def _perturbed(function: Callable[..., Any], arguments: list[Value]) -> Value:
    """Its value, and how far that moves when an argument moves by its error."""
    numbers = [a.number for a in arguments]
    try:
        value = function(*numbers)
        error = abs(value) * _EPSILON
        for index, a in enumerate(arguments):
            if a.error:
                moved = [n + (a.error if i == index else 0) for i, n in enumerate(numbers)]
                error += 2 * abs(function(*moved) - value)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError, mp.NoConvergence):
        raise UndefinedError from None
    return Value(value, mpf(0) if mp.isinf(value) else error)


def _raise(base: Any, power: Any, sign: int | None, real: bool) -> Any:
    """`sign` is that of the power of a negative number, where the real root is meant; None where there is none."""
    if mp.isinf(base) or mp.isinf(power):
        raise UndefinedError
    if base == 0:
        if mp.re(power) <= 0:
            raise UndefinedError
        return mpf(0)
    if abs(mp.log(base)) * abs(power) > _MAX_EXPONENT:
        raise TooLargeError
    if isinstance(base, mpf) and isinstance(power, mpf) and base < 0 and not mp.isint(power):
        if not real:
            return mp.power(base, power)
        if sign is None:
            raise UndefinedError
        return sign * mp.power(-base, power)
    return mp.power(base, power)


def _exp(x: Any) -> Any:
    if abs(x) > _MAX_EXPONENT:
        raise TooLargeError
    return mp.exp(x)


def _angle(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def bounded(x: Any) -> Any:
        if abs(x) > _MAX_ANGLE:
            raise TooLargeError
        return function(x)

    return bounded


def _gamma(x: Any) -> Any:
    if abs(x) > _MAX_EXPONENT // 32:
        raise TooLargeError
    return mp.gamma(x)


def _modulo(a: Any, b: Any) -> Any:
    return a - b * mp.floor(a / b)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _angle(getattr(mp, name)) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: getattr(mp, name) for name in ("asin", "acos", "atan", "acot", "asec", "acsc")},
    **{name: _angle(getattr(mp, name)) for name in ("sinh", "cosh", "tanh", "coth", "sech", "csch")},
    **{name: getattr(mp, name) for name in ("asinh", "acosh", "atanh", "acoth", "asech", "acsch", "sign", "conj")},
    "exp": _exp,
    "log": lambda x, base=None: mp.log(x) if base is None else mp.log(x) / mp.log(base),
    "Abs": abs,
    "floor": mp.floor,
    "ceiling": mp.ceil,
    "factorial": lambda n: _gamma(n + 1),
    "gamma": _gamma,
    "binomial": lambda n, k: _gamma(n + 1) / (_gamma(k + 1) * _gamma(n - k + 1)),
    "Mod": _modulo,
    "Max": max,
    "Min": min,
    "re": mp.re,
    "im": mp.im,
    "arg": mp.arg,
    "conjugate": mp.conj,
    "UnevaluatedExpr": lambda x: x,
}
