"""Rows of a source: those that can be used, and those that cannot, with the reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.names import did_you_mean

_LONGEST_VALUE = 80  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read. `number` counts lines of a text file, and rows elsewhere, both from 1."""

    file: str  # path of the file, or name of the data set
    number: int
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    number: int
    column: str  # "" where the whole row is at fault
    value: str  # in a few words; "" where there is none
    reason: str  # with the fix
    kind: str = ""  # of rows whose reasons differ in values alone; default: the reason

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        value = f", is {self.value}" if self.value else ""
        return f"{self.file} row {self.number}{column}{value}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with some rows, in the same way with each of them."""

    rows: tuple[BadRow, ...]

    def __str__(self) -> str:
        more = len(self.rows) - 1
        return f"{self.rows[0]}" + (f" (and so {more} more row{'s' if more > 1 else ''})" if more else "")


def faults(bad: Iterable[BadRow]) -> list[Fault]:
    """One for each column and kind of fault, in the order of their first rows: a cause is said once, and counted."""
    found: dict[tuple[str, str], list[BadRow]] = {}
    for row in bad:
        found.setdefault((row.column, row.kind or row.reason), []).append(row)
    return [Fault(tuple(rows)) for rows in found.values()]


class RowError(ValueError):
    """What is wrong with a row, raised where it is found."""

    def __init__(self, column: str, reason: str, value: Any = ..., kind: str = "") -> None:
        """Args: kind: see `BadRow`."""
        super().__init__(reason)
        self.column, self.reason, self.kind = column, reason, kind
        self.value = "" if value is ... else in_words(value)

    def of(self, row: Row) -> BadRow:
        return BadRow(row.file, row.number, self.column, self.value, self.reason, self.kind)


def in_words(value: Any) -> str:
    """A value in a message: one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def look_up(columns: Mapping[str, Any], path: str, where: str = "`columns`") -> Any:
    """The value at a path: a column, or with dots a key in the tables of a column, numbers for elements of a list.

    Args:
        where: the setting that says the path, for messages.

    Raises:
        RowError: there is none; names what there is.
    """
    if path in columns:  # also a name that has dots in it
        return columns[path]
    value: Any = columns
    for depth, name in enumerate(path.split(".")):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            there = ".".join(path.split(".")[:depth]) or "the row"
            if not isinstance(value, Mapping):
                reason = f"no such column: {there} is {in_words(value)}; name one of these in {where}"
                raise RowError(path, reason, kind=f"no such column: {there} is no table with it")
            has, meant = ", ".join(map(str, value)) or "no columns", did_you_mean(name, value)
            raise RowError(path, f"no such column: {there} has {has}; name one of these in {where}{meant}")
    return value
