"""The settings of a start, fit for JSON, and the recipe that starts it again."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.cli.ports import KEYS
from services.cli.recipe import Recipe
from shared import toml
from shared.models.hub import SCHEME
from shared.recipes import place_paths
from shared.resuming import dotted
from shared.settings import SERVICES, BaseSettings

# What a start finds by itself unless it was told: said again, it would be as if somebody had asked for it.
_FOUND = frozenset(
    {(service, key) for service in SERVICES for key in KEYS}
    | {("curriculum", f"{service}_address") for service in ("generation", "environments", "reward")}
    | {("environments", "generation_address"), ("generation", "reward_address")}
)


def plain(recipe: BaseSettings) -> dict[str, Any]:
    """Every setting by table, fit for JSON. Paths are absolute; secrets are left out."""
    tables: dict[str, Any] = _plain(recipe.model_dump())
    place_paths(tables, Path.cwd())
    return tables


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, as `data.train.0.columns.prompt`. A table or array without any has none."""
    return {name: value for name, value in dotted(tables).items() if value not in ([], {})}


def recipe_toml(recipe: Recipe) -> str:
    """A recipe that starts this run again wherever the machine has its files: settings with their defaults."""
    tables = plain(recipe)
    for service, key in _FOUND:
        if key not in recipe.server(service).model_fields_set:
            del tables[service][key]
    model = recipe.run.model
    if not isinstance(model, Path):
        tables["run"]["model"] = SCHEME + model
        tables["run"]["model_revision"] = recipe.run.model_folder().name  # the commit: a branch may move
    return (
        "# Written by `routershift`: the settings of this run, with their defaults. `routershift run` on this file\n"
        "# goes on with the run. A Redis of your own is named by REDIS_URL, which is in no file.\n\n"
        + toml.dumps(tables)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if not isinstance(each, SecretStr)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value.absolute())
    return value.value if isinstance(value, Enum) else value
