"""Is the response JSON, and does it satisfy a schema?"""

import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from services.reward.verifiers import answers, cpu
from services.reward.verifiers.base import CORRECT, Item, Verdict, Verifier, needs
from shared.errors import InvalidInputError

# Fences as in CommonMark, and the one-line form ```json {...}``` that it takes for code within a line.
_OPENING = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>\w*)(?P<rest>.*)")
_MAX_DIGITS = 20_000  # of an integer; Python's own limit is 4,300, and time grows with the square


class JsonSchemaVerifier(Verifier):
    """Reference: {"schema": {...}}, JSON Schema of the draft that its "$schema" names, else 2020-12.

    What follows the thoughts, or stands in <answer>, must be one JSON text, or have one fenced block that is: the only
    one marked ```json, else the only one. NaN and Infinity are not JSON; numbers are read as doubles, and one beyond
    their range is invalid (RFC 8259, section 6), but `multipleOf` is judged by the decimal digits. A "$ref" may point
    into the schema only. `valid` is 1.0 for JSON of any kind.
    """

    name: ClassVar[str] = "json_schema"
    version: ClassVar[str] = "2"
    description: ClassVar[str] = "JSON that satisfies the schema of the reference"
    thinking: ClassVar[bool] = False
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["schema"],
        "properties": {"schema": {"type": "object"}},
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": "1 for JSON of any kind, else 0"}

    def start(self) -> None:
        """Imports jsonschema."""
        _ = self._schemas

    @cached_property
    def _schemas(self) -> Any:
        with needs(self.name):
            from services.reward.verifiers import schemas
        return schemas

    def verify(self, item: Item) -> Verdict:
        validator = self._schemas.validator(item.reference)
        correct = valid = False
        try:
            with cpu.limited(self.settings.judging_seconds):
                value = _read(item.response, self.text(item))
                valid = True
                correct = validator.is_valid(value)
        except self._schemas.Unresolvable as error:
            raise InvalidInputError(f"reference of json_schema: {error}; a $ref must point into the schema") from None
        except re.error as error:
            raise InvalidInputError(f"reference of json_schema: pattern {error.pattern!r:.100}: {error}") from None
        except (ValueError, ArithmeticError, RecursionError, cpu.CpuTimeError):
            correct = False
        return Verdict(float(correct), {"correct": float(correct), "valid": float(valid)})


def _read(response: str, text: str) -> Any:
    """The JSON of a response, or of the text in it that is judged. Raises ValueError for what is not JSON."""
    try:
        return _parse(response)  # JSON through and through: a tag within a text of it is text
    except (ValueError, RecursionError):
        text = answers.tagged(text) or text
    blocks = _blocks(text)
    chosen = [content for language, content in blocks if language == "json"] or [content for _, content in blocks]
    return _parse(chosen[0] if len(chosen) == 1 else text)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language, in lower case, and content of each fenced block that is closed."""
    found: list[tuple[str, str]] = []
    lines = iter(text.replace("\r\n", "\n").split("\n"))
    for line in lines:
        opening = _OPENING.match(line)
        if opening is None:
            continue
        fence, language, rest = opening["fence"], opening["language"].lower(), opening["rest"].strip()
        if rest.endswith(fence):
            found.append((language, rest[: -len(fence)]))
            continue
        content: list[str] = []
        for inner in lines:
            if (mark := inner.strip()).startswith(fence) and not mark.strip(fence[0]):
                found.append((language, "\n".join(content)))
                break
            content.append(inner)
    return found


def _parse(text: str) -> Any:
    return json.loads(text.strip(), parse_constant=_refuse, parse_int=_integer, parse_float=_double)


def _integer(digits: str) -> int:
    """As int(), for up to 20,000 digits: in pieces that Python reads in any setting."""
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits; at most {_MAX_DIGITS}")
    value = 0
    for start in range(0, len(digits), 600):
        piece = digits[start : start + 600]
        value = value * 10 ** len(piece) + int(piece)
    return sign * value


def _double(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is larger than a double")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
