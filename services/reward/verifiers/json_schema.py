"""Is the response JSON, and does it satisfy a schema?"""

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jsonschema
import referencing
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from services.reward.verifiers import answers
from services.reward.verifiers.base import Item, Verdict, Verifier
from shared.errors import InvalidInputError

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_NOWHERE: referencing.Registry[Any] = referencing.Registry()  # a $ref is never fetched


class JsonSchemaVerifier(Verifier):
    """Reference: {"schema": {...}}, JSON Schema of the draft that its "$schema" names, else 2020-12.

    What follows the thoughts must be one JSON text, or have exactly one fenced block (```json) that is. NaN and
    Infinity are not JSON. A "$ref" may point into the schema only. `valid` is 1.0 for JSON of any kind.
    """

    name: ClassVar[str] = "json_schema"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "JSON that satisfies the schema of the reference"

    def verify(self, item: Item) -> Verdict:
        validator = _validator(item.reference)
        try:
            value = _parse(answers.after_thoughts(item.response))
        except (ValueError, RecursionError):
            return Verdict(0.0, {"correct": 0.0, "valid": 0.0})
        try:
            correct = validator.is_valid(value)
        except Unresolvable as error:
            raise InvalidInputError(f"reference of json_schema: {error}; a $ref must point into the schema") from None
        except RecursionError:
            correct = False
        return Verdict(float(correct), {"correct": float(correct), "valid": 1.0})


def _validator(reference: Mapping[str, Any]) -> Any:
    schema = reference.get("schema")
    if not isinstance(schema, dict):
        raise InvalidInputError(f"reference of json_schema has schema = {str(schema)[:200]}; expected an object")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise InvalidInputError(f"reference of json_schema: {error.json_path}: {error.message[:200]}") from None
    return kind(schema, registry=_NOWHERE)


def _parse(text: str) -> Any:
    """Raises ValueError for what is not JSON."""
    blocks = _FENCE.findall(text)
    return json.loads(blocks[0] if len(blocks) == 1 else text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
