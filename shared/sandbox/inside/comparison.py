"""When is an output, or a value, the one that was expected? The rules of Kattis' and LiveCodeBench's judges."""

import math
import re
from typing import Any, Literal

Comparison = Literal["lines", "tokens"]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"([+-]?)0*([0-9]+)")


def same_output(output: str, expected: str, comparison: Comparison, tolerance: float) -> bool:
    """Compares what a program printed.

    "lines": the same lines; white space at the end of each, and empty lines at the end of all, aside.
    "tokens": the same words between white space. Two numbers of which one has a point or an exponent are the same if
    they differ by `tolerance` at most, absolutely or relative to the larger one; integers are compared exactly.
    """
    if comparison == "lines":
        return _lines(output) == _lines(expected)
    ours, theirs = output.split(), expected.split()
    return len(ours) == len(theirs) and all(
        a == b or _same_number(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
    )


def same_value(value: Any, expected: Any, tolerance: float) -> bool:
    """Compares what a function returned with what JSON says: a tuple is a list, and a set a list in any order.

    Numbers of which one is a float are compared as "tokens" are; keys of objects are text in JSON.
    """
    if isinstance(value, set | frozenset) and isinstance(expected, list):
        return len(value) == len(expected) and all(any(same_value(v, e, tolerance) for v in value) for e in expected)
    if isinstance(value, list | tuple) and isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(
            same_value(v, e, tolerance) for v, e in zip(value, expected, strict=True)
        )
    if isinstance(value, dict) and isinstance(expected, dict):
        by_text = {_key(key): item for key, item in value.items()}
        return len(by_text) == len(value) == len(expected) and all(
            key in by_text and same_value(by_text[key], item, tolerance) for key, item in expected.items()
        )
    if isinstance(value, float) or isinstance(expected, float):
        return _is_number(value) and _is_number(expected) and _close(value, expected, tolerance)
    return type(value) is type(expected) and bool(value == expected)


def _key(key: Any) -> Any:
    return str(key) if _is_number(key) else key


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(a: float, b: float, tolerance: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an integer beyond all floats
        return False


def _same_number(a: str, b: str, tolerance: float) -> bool:
    if not (_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)):
        return False
    if (left := _INTEGER.fullmatch(a)) and (right := _INTEGER.fullmatch(b)):
        return left[2] == right[2] and (left[2] == "0" or (left[1] == "-") == (right[1] == "-"))
    x, y = float(a), float(b)
    return math.isfinite(x) and math.isfinite(y) and _close(x, y, tolerance)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
