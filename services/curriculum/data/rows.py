"""Rows of a source: those that can be used, and those that cannot, with the reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        value = f", is {self.value}" if self.value else ""
        return f"{self.file} row {self.number}{column}{value}: {self.reason}"


class RowError(ValueError):
    """What is wrong with a row, raised where it is found."""

    def __init__(self, column: str, reason: str, value: Any = ...) -> None:
        super().__init__(reason)
        self.column, self.reason = column, reason
        self.value = "" if value is ... else in_words(value)

    def of(self, row: Row) -> BadRow:
        return BadRow(row.file, row.number, self.column, self.value, self.reason)


def in_words(value: Any) -> str:
    """A value in a message: one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def look_up(columns: Mapping[str, Any], path: str) -> Any:
    """The value at a path: a column, or with dots a key in the tables of a column, numbers for elements of a list.

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
            found = f"has {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"is {in_words(value)}"
            raise RowError(path, f"no such column: {there} {found}; name one of these in `columns`")
    return value
