"""JSON values on the wire."""

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from routershift.errors import InvalidInputError

_MAX_WHOLE = 1 << 53  # beyond, a double does not tell neighbouring integers apart


def encode_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """JSON values as a protobuf message. Raises ValueError for what JSON does not have."""
    message = struct_pb2.Struct()
    message.update(dict(values))
    return message


def decode_struct(message: struct_pb2.Struct) -> dict[str, Any]:
    """JSON values of a protobuf message. It knows only doubles: those that are whole are integers again.

    Raises:
        InvalidInputError: a number is not finite, which JSON does not have.
    """
    return {key: _decode_value(value, key) for key, value in message.fields.items()}


def _decode_value(value: struct_pb2.Value, where: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidInputError(f"{where} is {number}; expected a finite number")
            return int(number) if number.is_integer() and abs(number) <= _MAX_WHOLE else number
        case "struct_value":
            return {key: _decode_value(inner, f"{where}.{key}") for key, inner in value.struct_value.fields.items()}
        case "list_value":
            return [_decode_value(inner, f"{where}[{i}]") for i, inner in enumerate(value.list_value.values)]
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None
