"""Tables of a recipe that choose a kind and give its settings, such as [reward.verifiers.NAME]."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from shared.errors import InvalidInputError, RouterShiftError
from shared.names import nearest

Kind = TypeVar("Kind")
Settings = TypeVar("Settings", bound=BaseModel)


def required(settings: type[BaseModel]) -> list[str]:
    """The keys that a table has to have."""
    return [name for name, field in settings.model_fields.items() if field.is_required()]


def chosen(where: str, known: Mapping[str, Kind], kind: object) -> Kind:
    """The kind of a name. Raises InvalidInputError for an unknown one, with the nearest; `where` is the table."""
    if (found := known.get(str(kind))) is None:
        raise InvalidInputError(
            f"setting '{where}.kind' is {kind!r}; did you mean {nearest(str(kind), known)!r}? "
            f"The kinds are {', '.join(known)}"
        )
    return found


def settings_of(where: str, settings: type[Settings], table: Mapping[str, Any]) -> Settings:
    """The settings of a table, without its `kind`.

    Raises:
        InvalidInputError: an unknown key, with the nearest, or a value out of range.
    """
    try:
        return settings.model_validate({key: value for key, value in table.items() if key != "kind"})
    except ValidationError as error:
        raise InvalidInputError(_explain(where, error, settings)) from None


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Errors name the table."""
    try:
        yield
    except RouterShiftError as error:
        raise type(error)(f"{where}: {error}") from None


def _explain(where: str, error: ValidationError, settings: type[BaseModel]) -> str:
    fault = error.errors(include_url=False)[0]
    path = ".".join([where, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        table, _, key = path.rpartition(".")
        meant = nearest(key, _table(settings, fault["loc"][:-1]).model_fields)
        return f"unknown setting {path!r}; did you mean {f'{table}.{meant}'!r}?"
    value = "" if fault["type"] == "missing" else f" is {str(fault['input'])[:200]!r}:"
    return f"setting {path!r}{value} {fault['msg']}"


def _table(settings: type[BaseModel], path: Iterable[int | str]) -> type[BaseModel]:
    """The table at a path, through tables of tables such as parts.NAME."""
    for step in path:
        if field := settings.model_fields.get(str(step)):
            types = (field.annotation, *get_args(field.annotation))
            settings = next(t for t in types if isinstance(t, type) and issubclass(t, BaseModel))
    return settings
