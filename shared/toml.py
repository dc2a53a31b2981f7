"""Writes TOML (1.0), which the standard library only reads."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(document: Mapping[str, Any]) -> str:
    """A document of tables. Keys without a value, None, are left out: TOML has no null.

    Args:
        document: JSON with numbers that are finite. A list of mappings becomes an array of tables.
    """
    return "\n".join(_tables(document, ())).strip() + "\n"


def inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {inline(each)}" for key, each in value.items() if each is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, allow_nan=False)


def _tables(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The keys of a table under its heading, then the tables in it."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping) or _is_array(value)}
    plain = {key: value for key, value in table.items() if key not in inner and value is not None}
    if path and (plain or not inner):
        yield f"[{_name(path)}]"
    yield from (f"{_key(key)} = {inline(value)}" for key, value in plain.items())
    if plain or path:
        yield ""
    for key, value in inner.items():
        if isinstance(value, Mapping):
            yield from _tables(value, (*path, key))
            continue
        for each in value:
            yield f"[[{_name((*path, key))}]]"
            yield from (f"{_key(name)} = {inline(inside)}" for name, inside in each.items() if inside is not None)
            yield ""


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _name(path: tuple[str, ...]) -> str:
    return ".".join(map(_key, path))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else inline(key)
