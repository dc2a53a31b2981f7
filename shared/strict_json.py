"""JSON as its standard has it: no NaN, and no object with a key twice, of which Python silently keeps the last."""

import json
from typing import Any


class DuplicateKeyError(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"an object has the key {key!r} twice; take one out, or rename it")
        self.key = key


def parse(text: str) -> Any:
    """The value of a text. Raises ValueError, DuplicateKeyError among them, and RecursionError."""
    return json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)


def parse_prefix(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at an index, and the index behind it. Raises as `parse`."""
    return _DECODER.raw_decode(text, start)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return made


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)
