"""JSON Schema for the verifier json_schema: what needs the package jsonschema."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import jsonschema
import referencing
from jsonschema.exceptions import SchemaError, ValidationError
from referencing.exceptions import Unresolvable

from shared.errors import InvalidInputError

__all__ = ["Unresolvable", "validator"]

_NOWHERE: referencing.Registry[Any] = referencing.Registry()  # a $ref is never fetched


def validator(reference: Mapping[str, Any]) -> Any:
    """A validator for the schema of a reference. Raises InvalidInputError where it is none."""
    schema = reference.get("schema")
    if not isinstance(schema, dict):
        raise InvalidInputError(f"reference of json_schema has schema = {str(schema)[:200]}; expected an object")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidInputError(f"reference of json_schema: {error.json_path}: {error.message[:200]}") from None
    extended: Any = jsonschema.validators.extend(kind, {"multipleOf": _multiple_of})  # type: ignore[no-untyped-call]
    return extended(schema, registry=_NOWHERE)


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """By decimal digits: 0.07 is a multiple of 0.01, which it is not as a double, and 10^400 is one too."""
    if validator.is_type(instance, "number") and _exact(instance) % _exact(divisor):
        yield ValidationError("not a multiple")


def _exact(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))
