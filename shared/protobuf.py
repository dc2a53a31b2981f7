"""Protobuf's wire format, for messages too large to be parsed for the sake of a few of their fields.

https://protobuf.dev/programming-guides/encoding. Nothing is copied: values are views of the message.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shared.errors import CorruptDataError

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message, in the order of the wire."""

    number: int
    value: memoryview | None  # of a string, bytes or message; None for a number


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, those it does not know included. Raises CorruptDataError where it is none."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value_at = at
        if kind == _DELIMITED:
            length, value_at = _varint(message, at)
            at = value_at + length
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise CorruptDataError(f"byte {start} begins a field of wire type {kind}; expected 0, 1, 2 or 5")
        if at > end or number == 0:
            raise CorruptDataError(f"byte {start} begins field {number}, which ends at {at} of {end} bytes")
        yield Field(number, message[value_at:at] if kind == _DELIMITED else None)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and the index behind it."""
    number = 0
    for i, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    raise CorruptDataError(f"byte {at} begins a number that does not end")
