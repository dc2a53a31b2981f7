"""Rows of JSON Lines, and of JSON: a list of objects."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from services.curriculum.data.rows import BadRow, Row, in_words
from shared import encodings, strict_json
from shared.errors import CorruptDataError, InvalidInputError
from shared.strict_json import DuplicateKeyError

_BLANK = b" \t\r\n\xef\xbb\xbf"


def json_lines(name: str, file: IO[bytes]) -> Iterator[Row | BadRow]:
    """A row a line; `name` is that of the file, for messages."""
    for number, line in enumerate(file, 1):
        if line.strip(_BLANK):
            yield _row(name, number, line)


def json_list(name: str, file: IO[bytes]) -> Iterator[Row | BadRow]:
    """The objects of a list, or of JSON Lines, as many files of that name are.

    Raises:
        CorruptDataError: neither.
        InvalidInputError: JSON that is no table of rows.
        UnicodeDecodeError: not UTF-8.
    """
    text = file.read()
    if not text.strip(_BLANK):
        return
    try:
        value = _parse(text)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and isinstance(_row(name, 1, lines[0]), Row):
            yield from json_lines(name, io.BytesIO(text))
            return
        if isinstance(error, DuplicateKeyError):
            yield from _elements(name, text.decode("utf-8-sig"), error)
            return
        raise CorruptDataError(
            f"{name} is not JSON: {error}; expected a list of objects, or an object a line"
        ) from None
    if isinstance(value, dict) and len(value) == 1 and isinstance(rows := next(iter(value.values())), list):
        value = rows  # {"data": [...]}
    if isinstance(value, dict) and b"\n" not in text.strip():
        value = [value]
    if not isinstance(value, list):
        raise InvalidInputError(f"{name} holds one {type(value).__name__}; expected a list of objects, one a row")
    for number, each in enumerate(value, 1):
        yield _object(name, number, each)


def _elements(name: str, text: str, error: DuplicateKeyError) -> Iterator[Row | BadRow]:
    """The objects of a list one by one, to tell which of them has a key twice."""
    start = text.find("[") + 1
    if text[: start - 1].strip():
        raise CorruptDataError(f"{name}: {error}") from None
    lenient, number = json.JSONDecoder(), 0
    while (start := _next_value(text, start)) < len(text) and text[start] != "]":
        _, end = lenient.raw_decode(text, start)
        number += 1
        yield _row(name, number, text[start:end].encode())
        start = end


def _next_value(text: str, start: int) -> int:
    while start < len(text) and text[start] in " \t\r\n,":
        start += 1
    return start


def _row(name: str, number: int, text: bytes) -> Row | BadRow:
    shown = in_words(text.decode(errors="replace").strip())
    try:
        return _object(name, number, _parse(text))
    except UnicodeDecodeError as error:
        reason = f"not JSON: not UTF-8: {error.reason}; {encodings.fix(Path(name), error)}"
        return BadRow(name, number, "", shown, reason, "not UTF-8")
    except DuplicateKeyError as error:
        return BadRow(name, number, error.key, "", f"not JSON: {error}")
    except (ValueError, RecursionError) as error:
        return BadRow(name, number, "", shown, f"not JSON: {error}; mend it", "not JSON")


def _object(name: str, number: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(name, number, value)
    return BadRow(name, number, "", in_words(value), "expected an object with a key for each column")


def _parse(text: bytes) -> Any:
    return strict_json.parse(text.decode("utf-8-sig"))
