"""Every setting there is, read from the models of the tables: its key, type, default and description."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared.recipes import is_array, table_of

_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", SecretStr: "text"}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    table: str  # dotted, as in a recipe's [learner.optimizer]
    name: str
    type: str  # in words
    default: Any  # fit for JSON; None where there is none
    is_required: bool
    description: str

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}"


@dataclass(frozen=True, slots=True)
class TableOfKeys:
    """One table of a recipe, without the tables in it."""

    name: str
    description: str
    keys: tuple[Key, ...]
    is_array: bool = False  # written [[name]], once for each

    @property
    def heading(self) -> str:
        """As it stands in a recipe."""
        return f"[[{self.name}]]" if self.is_array else f"[{self.name}]"


def tables(model: type[BaseModel], name: str = "", is_array_of_tables: bool = False) -> Iterator[TableOfKeys]:
    """The tables of a model, each before those in it; of an array of tables, one stands for all."""
    keys, inner = [], []
    for key, field in model.model_fields.items():
        path = f"{name}.{key}" if name else key
        table = table_of(field.annotation)
        if table is not None:
            inner.append((table, path, is_array(field.annotation)))
        else:
            keys.append(_key(name, key, field))
    if name and (keys or not inner):
        description = (model.__doc__ or "").strip().partition("\n")[0] if "__doc__" in vars(model) else ""
        yield TableOfKeys(name, description, tuple(keys), is_array_of_tables)
    for table, path, is_array_there in inner:
        yield from tables(table, path, is_array_there)


def _key(table: str, name: str, field: FieldInfo) -> Key:
    if field.default_factory is not None:
        default: Any = None
    else:
        default = None if field.default is PydanticUndefined else _plain(field.default)
    bounds = _range(field.metadata)
    in_words = _type(field.annotation)
    return Key(
        table, name, f"{in_words}, {bounds}" if bounds else in_words, default, field.is_required(),
        field.description or "",
    )  # fmt: skip


def _range(limits: Sequence[Any]) -> str:
    match list(limits):
        case [annotated_types.Ge(lowest), annotated_types.Le(highest)]:
            return f"{lowest} to {highest}"
    return " and ".join(filter(None, map(_bound, limits)))


def _bound(limit: Any) -> str:
    match limit:
        case annotated_types.Ge(ge):
            return f"at least {ge}"
        case annotated_types.Gt(gt):
            return f"above {gt}"
        case annotated_types.Le(le):
            return f"at most {le}"
        case annotated_types.Lt(lt):
            return f"below {lt}"
    return ""


def _type(annotation: Any) -> str:
    """In words, with every choice of an enumeration."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if _is_union(annotation):
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(arguments[0])}" if arguments else "list"
    if origin is dict or annotation is dict:
        return "tables by name"
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _type(annotation.__value__)
    if origin is not None and hasattr(annotation, "__metadata__"):  # Annotated
        return _type(arguments[0])
    return getattr(annotation, "__name__", str(annotation))


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | set | frozenset | list):
        return [_plain(part) for part in value]
    return value
