"""Plain data as JSON that keeps Python's types. Everything else crosses as a number that stands for it.

None, bool, int, float and str are themselves; containers and the rest are {tag: content}. A subclass of a plain type
crosses as the plain type, by its content: what it overrides does not come along.
"""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_MAX_JSON_INT = 1 << 63
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TEXTS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (int, hex, lambda text: int(text, 16)),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
    "complex": (complex, complex.__repr__, complex),
    "decimal": (Decimal, Decimal.__str__, Decimal),
    "fraction": (Fraction, Fraction.__str__, Fraction),
}


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """`refer` gives the JSON that stands for what is no plain data, or raises."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, int) and -_MAX_JSON_INT < value < _MAX_JSON_INT:
        return int.__add__(value, 0)
    if isinstance(value, dict):
        return {"dict": [[encode(k, refer), encode(v, refer)] for k, v in dict.items(value)]}
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {tag: [encode(v, refer) for v in kind.__iter__(value)]}
    for tag, (text_kind, write, _) in _TEXTS.items():
        if isinstance(value, text_kind):
            return {tag: write(value)}
    return refer(value)


def decode(value: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """`resolve` is given the tag and content of what is no plain data.

    Raises:
        ValueError, TypeError, KeyError: this is nothing that `encode` gives.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise TypeError("a list without a tag")
        return value
    ((tag, content),) = value.items()
    if tag == "dict":
        return {decode(k, resolve): decode(v, resolve) for k, v in content}
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](decode(v, resolve) for v in content)
    if tag in _TEXTS:
        return _TEXTS[tag][2](content)
    return resolve(tag, content)
