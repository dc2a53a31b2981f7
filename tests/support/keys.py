"""Whether a recipe has a key, for what pages and manifests name."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from services.cli.recipe import Recipe


def exists(path: list[str]) -> bool:
    """Whether a recipe has this key; below a mapping, such as [reward.verifiers], names are free."""
    table: type[BaseModel] = Recipe
    for depth, name in enumerate(path, 1):
        if name not in table.model_fields:
            return False
        annotation = table.model_fields[name].annotation
        inner = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not inner:
            return depth == len(path) or "Mapping" in str(annotation) or "dict" in str(annotation)
        table = inner[0]
    return True


def leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The keys of a TOML document that are no tables, as paths; those of an array of tables once for each."""
    for key, value in table.items():
        inner = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for each in inner:
            if isinstance(each, dict):
                yield from leaves(each, (*path, key))
            else:
                yield [*path, key]
