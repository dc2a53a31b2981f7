"""The one rule by which a record, or settings, become flat names and values, as experiment trackers take them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.settings import BaseSettings
from shared.tracking.base import Kind

_LAYER = re.compile(r"(.+)_layer_(\d+)")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")
# What says which record it is, and is no measurement.
_KEYS = frozenset({"step", "version", "set", "main"})


@dataclass(frozen=True, slots=True)
class Flat:
    """A record by names such as train/loss, which trackers group by what stands before the first slash."""

    step: int  # the x axis: the optimizer step, or the version that was evaluated, which is the step that made it
    numbers: Mapping[str, float]
    texts: Mapping[str, str]


def flatten(kind: Kind, record: Mapping[str, Any]) -> Flat:
    """A record with nested values under names with slashes.

    - Of a step, a number is train/NAME, that of a layer NAME/layer_N, and what is nested NAME/INNER.
    - Of an evaluation, all is evaluation/SET/NAME, or evaluation/NAME where the record names no set.
    - A list's items have their place as a name; true is 1, false 0; null, a number that is not finite, is left out.
    - What is not a letter of ASCII, a digit, or one of _ . - becomes _ in each part of a name.
    """
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    for path, value in _leaves((), {name: value for name, value in record.items() if name not in _KEYS}):
        name = "/".join(_part(part) for part in _grouped(kind, record, path))
        if isinstance(value, int | float):
            numbers[name] = float(value)
        elif value is not None:
            texts[name] = str(value)
    return Flat(int(record["step"] if kind == "step" else record["version"]), numbers, texts)


def config(settings: BaseSettings) -> dict[str, Any]:
    """The settings that a service was started with, nested as in a recipe; secrets are masked."""
    return settings.model_dump(mode="json")


def flat_config(settings: BaseSettings) -> dict[str, str]:
    """The same by dotted names, as --set takes them, with values as in JSON, and texts as they are."""
    return {
        ".".join(map(_part, path)): value if isinstance(value, str) else json.dumps(value)
        for path, value in _leaves((), config(settings))
    }


def _grouped(kind: Kind, record: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    if kind == "evaluation":
        return ("evaluation", *([str(record["set"])] if "set" in record else []), *path)
    if len(path) > 1:
        return path
    layer = _LAYER.fullmatch(path[0])
    return (layer[1], f"layer_{layer[2]}") if layer else ("train", path[0])


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield path, value
        return
    for name, inner in items:
        yield from _leaves((*path, str(name)), inner)


def _part(part: str) -> str:
    """A part of a name; never empty, "." or "..", which MLflow's store would read as a path."""
    clean = _NOT_IN_NAMES.sub("_", part)
    return clean if clean.strip(".") else f"_{clean}"
