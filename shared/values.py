"""What the code of other people gives: read as numbers, and shown in messages, whatever it is."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

_SHOWN_CHARACTERS = 200
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _SHOWN_CHARACTERS


def number(value: Any) -> float | None:
    """A finite number as a float: Python's, and scalars of numpy and torch. None for anything else."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    try:
        if not isinstance(value, int | float) and callable(getattr(value, "item", None)):
            value = value.item()
        as_float = None if isinstance(value, str | bytes | bytearray) else float(value)
    except Exception:  # it is no number, or too large for one
        return None
    return as_float if as_float is not None and math.isfinite(as_float) else None


def shown(value: object) -> str:
    """A short repr."""
    try:
        return one_line(_REPR.repr(value), _SHOWN_CHARACTERS)
    except Exception:
        return f"<{type(value).__name__}>"


def field(reference: Mapping[str, Any], name: str) -> str:
    """What a reference has as a field, for the middle of a message: whether it is missing, or its value."""
    return f"{name} = {shown(reference[name])}" if name in reference else f"no {name}"


def message(error: BaseException) -> str:
    """What an exception says, if it can say it."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"


def is_text(text: str) -> bool:
    """Whether it has an encoding: a lone surrogate has none, and goes into no message."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def one_line(text: str, most: int) -> str:
    """Its beginning, without what breaks a line or has no encoding."""
    cut = text[: most + 1]
    plain = " ".join(cut.split("\n")).encode(errors="backslashreplace").decode()
    return plain if len(cut) <= most else plain[:most] + "..."
