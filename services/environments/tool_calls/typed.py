"""Values of arguments in forms that write them as plain text, by the schemas of the tools."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shared import strict_json

_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_DEEPEST = 8  # schemas within schemas that are looked at
_NOTHING: Any = object()


def schemas_of(name: str, tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schemas of a function's parameters, by their names; none where it is not known."""
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return properties if isinstance(properties, Mapping) else {}
    return {}


def typed(text: str, schema: object) -> Any:
    """What a text stands for: of the types that the schema allows, the first that it can be read as.

    They are tried in the order of vLLM's parsers: null, integer, number, boolean, object, array, string. A text that is
    none of them, or has no schema, stays a text; what calls the function says what is wrong with it.
    """
    types = set(_types(schema))
    for kind, read in _READERS.items():
        if kind in types and (value := read(text)) is not _NOTHING:
            return value
    return text


def _types(schema: object, depth: int = 0) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return
    kinds = schema.get("type")
    yield from [kinds] if isinstance(kinds, str) else [kind for kind in _list(kinds) if isinstance(kind, str)]
    yield from map(_type_of, _list(schema.get("enum")) + ([schema["const"]] if "const" in schema else []))
    for key in ("anyOf", "oneOf", "allOf"):
        for each in _list(schema.get(key)):
            yield from _types(each, depth + 1)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_of(value: object) -> str:
    for kind, of in (("null", type(None)), ("boolean", bool), ("integer", int), ("number", float), ("string", str)):
        if isinstance(value, of):
            return kind
    return "object" if isinstance(value, Mapping) else "array"


def _null(text: str) -> Any:
    return None if text.strip().lower() == "null" else _NOTHING


def _integer(text: str) -> Any:
    return int(text) if _INTEGER.fullmatch(text.strip()) else _NOTHING


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return _NOTHING
    if not math.isfinite(value):
        return _NOTHING
    return int(value) if value == int(value) else value


def _boolean(text: str) -> Any:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), _NOTHING)


def _json(text: str, kind: type) -> Any:
    try:
        value = strict_json.parse(text)
    except (ValueError, RecursionError):
        return _NOTHING
    return value if isinstance(value, kind) else _NOTHING


_READERS: dict[str, Callable[[str], Any]] = {
    "null": _null,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "object": lambda text: _json(text, dict),
    "array": lambda text: _json(text, list),
    "string": lambda text: text,
}
