"""Reads settings: a recipe (TOML), then environment, then flags, each stronger than the one before.

A recipe has one table per component, with tables in it by topic. `optimizer.beta1 = 0.8` under `[learner]` in a recipe,
`ROUTERSHIFT_LEARNER__OPTIMIZER__BETA1=0.8` in the environment and the flag `--set learner.optimizer.beta1=0.8` mean
the same.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from routershift.routing.choices import NEEDS_EXACT_SCORES
from shared.errors import InvalidInputError, NotFoundError
from shared.models.hub import SCHEME, parse_model
from shared.resuming import without_numbers
from shared.settings import SERVICES, BaseSettings, RedisSettings
from shared.sources import is_file

ENV_PREFIX = "ROUTERSHIFT_"
_VERIFIERS = (("reward", "verifiers", "*"), ("data", "train", "*", "verifier"), ("data", "eval", "*", "verifier"))
# What a recipe names relative to itself, beside its model, and when a value that may be more is a path. "*": any name
# or number.
_PATHS: Mapping[tuple[str, ...], Callable[[str], bool]] = {
    **{(*verifier, key): (lambda value: True) for verifier in _VERIFIERS for key in ("file", "model")},
    ("environments", "named", "*", "file"): lambda value: True,
    **{("data", part, "*", "source"): is_file for part in ("train", "eval")},
    **{("data", part, "*", "chat_template"): lambda value: value not in ("on", "off") for part in ("train", "eval")},
}
_OTHERS = (*SERVICES, "data", "supervisor")  # tables that a component leaves to others where they are not its own

SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(
    model: type[SettingsT], recipe: Path | None, environment: Mapping[str, str], flags: Iterable[str] = ()
) -> SettingsT:
    """Reads, merges and validates the settings of one component.

    Args:
        model: the tables wanted. Tables of other services are left to them.
        recipe: a TOML file, or None for none.
        environment: usually os.environ; `ROUTERSHIFT_TABLE__KEY`, and REDIS_URL.
        flags: `table.key=value` each.

    Raises:
        NotFoundError: there is no such recipe, or nothing of a name in it, such as an objective.
        InvalidInputError: not TOML, an unknown table or key (names the nearest), or a value out of range.
    """
    data = _read(recipe) if recipe else {}
    for source, path, value in (*_from_environment(environment), *_from_flags(flags, model)):
        _assign(data, source, path, value)
    _name_verifiers(data)
    _choose_router_scores(data)
    others = set(_OTHERS) - set(model.model_fields)
    try:
        return model.model_validate({table: keys for table, keys in data.items() if table not in others})
    except ValidationError as error:
        raise InvalidInputError(_explain(error, model)) from None


def redis_of(environment: Mapping[str, str], **changes: Any) -> RedisSettings:
    """The table [redis] for a command that knows no recipe.

    Raises:
        InvalidInputError: as `load`.
    """
    named = {path[1]: value for _, path, value in _from_environment(environment) if path[0] == "redis" and path[1:]}
    try:
        return RedisSettings.model_validate(named | changes)
    except ValidationError as error:
        raise InvalidInputError(f"table 'redis': {_explain(error, RedisSettings)}") from None


def _read(recipe: Path) -> dict[str, Any]:
    if recipe.is_dir():
        inside = sorted(file.name for file in recipe.glob("*.toml"))
        hint = f"did you mean {recipe / inside[0]}?" if inside else "recipes are TOML files, see deploy/recipes"
        raise InvalidInputError(f"recipe {recipe} is a folder; {hint}")
    if not recipe.is_file():
        raise NotFoundError(f"recipe {recipe} does not exist; recipes are TOML files, see deploy/recipes")
    try:
        data = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"recipe {recipe} is not TOML: {error}") from None
    place_paths(data, recipe.parent)
    run = data.get("run")
    if isinstance(run, dict) and isinstance(run.get("model"), str):
        try:
            model = parse_model(run["model"], recipe.parent)
        except ValueError as error:
            raise InvalidInputError(f"recipe {recipe}: run.model: {error}") from None
        run["model"] = model if isinstance(model, Path) else SCHEME + model
    return data


def place_paths(data: dict[str, Any], folder: Path) -> None:
    """Makes the paths in the tables of a recipe begin in a folder, where they are relative; but for its model."""
    for path, is_path in _PATHS.items():
        for table in _tables(data, path[:-1]):
            value = table.get(path[-1])
            if isinstance(value, str) and is_path(value):
                table[path[-1]] = str(folder / value)


def _tables(data: Any, path: Sequence[str]) -> list[dict[str, Any]]:
    """The tables of a recipe at a path in which "*" is any name, or any table of an array."""
    if isinstance(data, list) and path and path[0] == "*":
        return [table for value in data for table in _tables(value, path[1:])]
    if not isinstance(data, dict):
        return []
    if not path:
        return [data]
    inside = data.values() if path[0] == "*" else [data.get(path[0])]
    return [table for value in inside for table in _tables(value, path[1:])]


def _assign(data: dict[str, Any], source: str, path: list[str], value: str) -> None:
    """Sets one key from the environment or a flag. A number in its path counts the tables of an array from 0."""
    table: Any = data
    for depth, name in enumerate(path, 1):
        named = ".".join(path[:depth])
        is_last = depth == len(path)
        inner: Any = value if is_last else [] if path[depth].isdecimal() else {}
        if isinstance(table, list):
            if not name.isdecimal() or int(name) > len(table):
                raise InvalidInputError(
                    f"{source}: {named.rpartition('.')[0]} is an array of {len(table)} tables; expected the number of "
                    f"one, counted from 0, as 0 to {len(table)} for {name!r}"
                )
            if int(name) == len(table):
                table.append(inner)
            elif is_last:
                table[int(name)] = value
            table = table[int(name)]
        elif is_last:
            table[name] = value
        else:
            table = table.setdefault(name, inner)
        if not is_last and not isinstance(table, dict | list):
            raise InvalidInputError(f"{source}: {named} is a single value in the recipe; expected a table [{named}]")


def _name_verifiers(data: dict[str, Any]) -> None:
    """Moves a verifier that a data table has in it to [reward.verifiers], where the reward service finds it.

    `verifier = { kind = "math", judging_seconds = 2 }` in the first [[data.train]] becomes
    [reward.verifiers.data-train-0] and that name in its place. Tables that are equal are one verifier.
    """
    tables = data.get("data")
    if not isinstance(tables, dict):
        return
    named: list[tuple[str, dict[str, Any]]] = []
    for part in ("train", "eval"):
        sources = tables.get(part)
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            verifier = source.get("verifier") if isinstance(source, dict) else None
            if not isinstance(verifier, dict):
                continue
            if not verifier.keys() & {"kind", "file"}:
                raise InvalidInputError(
                    f"setting 'data.{part}.{index}.verifier' is a table without kind or file; set "
                    f"data.{part}.{index}.verifier.kind, as math, or name a table of [reward.verifiers]"
                )
            name = next((name for name, known in named if known == verifier), f"data-{part}-{index}")
            named.append((name, verifier))
            source["verifier"] = name
            reward = data.setdefault("reward", {})
            if isinstance(reward, dict) and isinstance(known := reward.setdefault("verifiers", {}), dict):
                known.setdefault(name, verifier)


def _choose_router_scores(data: dict[str, Any]) -> None:
    """Sets generation.router_scores to float16 for a learner that needs it, where the recipe does not say."""
    generation = data.get("generation", {})
    if not isinstance(generation, dict) or "router_scores" in generation:
        return
    for name, value in NEEDS_EXACT_SCORES:
        chosen: Any = data.get("learner")
        for part in name.split("."):
            chosen = chosen.get(part) if isinstance(chosen, dict) else None
        if chosen == value:
            data["generation"] = generation | {"router_scores": "float16"}


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a table: also of one that may be left out, and of those of an array; None for other keys."""
    for part in (annotation, *(get_args(annotation) if get_origin(annotation) is not dict else ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def is_array(annotation: Any) -> bool:
    """Whether a key is an array of tables, each [[table.key]]."""
    return get_origin(annotation) in (list, tuple) and table_of(annotation) is not None


def _from_environment(environment: Mapping[str, str]) -> Iterable[tuple[str, list[str], str]]:
    for name, value in sorted(environment.items()):
        if name.startswith(ENV_PREFIX):
            path = name.removeprefix(ENV_PREFIX).lower().split("__")
            if len(path) < 2 or not all(path):
                raise InvalidInputError(f"environment variable {name} names no key; expected {ENV_PREFIX}TABLE__KEY")
            yield name, path, value
    if url := environment.get("REDIS_URL"):
        yield "REDIS_URL", ["redis", "url"], url


def _from_flags(flags: Iterable[str], model: type[BaseModel]) -> Iterable[tuple[str, list[str], str]]:
    for flag in flags:
        name, equals, value = flag.partition("=")
        path = name.split(".")
        if not equals:
            raise InvalidInputError(f"--set {flag!r} is not an assignment; expected --set table.key=value")
        if len(path) < 2:
            raise InvalidInputError(f"--set {flag!r} names no table; {_in_its_table(name, value, model)}")
        if not all(path):
            raise InvalidInputError(f"--set {flag!r} has a part without a name; expected --set table.key=value")
        yield f"--set {name}", path, value


def _in_its_table(name: str, value: str, model: type[BaseModel]) -> str:
    """How to write an assignment that names a key alone."""
    keys = _keys(model)
    if name in keys:
        inside = next(key for key in keys if key.startswith(f"{name}."))
        return f"{name} is a table; set one of its keys, as --set {inside}=..."
    found = [key for key in keys if key.rpartition(".")[2] == name] or [_nearest(name, model)]
    return f"did you mean {' or '.join(f'--set {key}={value}' for key in found[:3])}?"


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for the first fault: the key, the value, and the nearest known key or what was expected."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r}; did you mean {_nearest(name, model)!r}?{more}"
    if fault["type"] == "tuple_type" and isinstance(fault["input"], Mapping):
        return f"setting {name!r} is one table; write [[{name}]], of which there may be several{more}"
    if fault["type"] == "model_type":
        inside = [key for key in _keys(model) if key.startswith(f"{without_numbers(name)}.")]
        return f"setting {name!r} is {fault['input']!r}: it is a table; set one of its keys, as {inside[0]!r}{more}"
    if fault["type"] == "dict_type":
        return f'setting {name!r} is {fault["input"]!r}: it is a table, as {{ name = "value" }}{more}'
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # raised by a table as a whole
        return f"setting {name!r}: {fault['ctx']['error']}{more}" if name else f"{fault['ctx']['error']}{more}"
    # A whole table would be long, and may hold a secret.
    value = "" if fault["type"] == "missing" or isinstance(fault["input"], Mapping) else f" is {fault['input']!r}:"
    said = fault["ctx"]["error"] if fault["type"] == "value_error" else fault["msg"].lower()
    return f"setting {name!r}{value} {said}{more}"


def _nearest(name: str, model: type[BaseModel]) -> str:
    """The known key or table most like `name`.

    A key in another table of the same component counts by its own name or by its whole path: `learner.gamma_mn` and
    `learner.router_shift_gamma_min` both find `learner.router_shift.gamma_min`. Between equals, that in the table
    which was named wins.
    """
    named = name.rpartition(".")[0]  # with the number of a table in an array
    name = without_numbers(name)
    table, _, key = name.rpartition(".")
    component, _, below = name.partition(".")
    known = [*_keys(model), *(_OTHERS if not table else ())]

    def likeness(candidate: str) -> tuple[float, bool]:
        inside, _, last = candidate.rpartition(".")
        pairs = [(key, last)] if last else []
        if candidate.partition(".")[0] == component:
            pairs.append((below.replace(".", "_"), candidate.partition(".")[2].replace(".", "_")))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs), inside == table

    siblings = [candidate for candidate in known if candidate.rpartition(".")[0] == table]
    related = [
        candidate
        for candidate in known
        if (candidate.startswith(f"{component}.") if table else candidate.rpartition(".")[2] == key)
    ]
    nearest: str = max([*siblings, *related] or known, key=likeness)
    return f"{named}.{nearest.rpartition('.')[2]}" if nearest.rpartition(".")[0] == table != named else nearest


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all keys and tables of a model, each table before its keys."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if inner := table_of(field.annotation):
            found += _keys(inner, f"{prefix}{name}.")
    return found
