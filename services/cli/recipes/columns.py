"""The columns of rows, by dotted paths: which there are, and what stands there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def paths(columns: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all values."""
    for name, value in columns.items():
        if isinstance(value, Mapping) and value:
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def named(paths: Sequence[str], names: Sequence[str]) -> str | None:
    """The path with the first of these names; a whole path goes before its last part."""
    for name in names:
        whole = [path for path in paths if path.casefold() == name]
        last = [path for path in paths if path.rpartition(".")[2].casefold() == name]
        if whole or last:
            return [*whole, *last][0]
    return None


def value(columns: Mapping[str, Any], path: str) -> Any:
    value: Any = columns
    if path in columns:
        return columns[path]
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def is_unique(values: Sequence[Any]) -> bool:
    texts = [str(value) for value in values if isinstance(value, str | int)]
    return len(texts) == len(values) == len(set(texts))
