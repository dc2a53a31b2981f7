"""Is the response, or its final answer, exactly the reference?"""

import unicodedata
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from services.reward.verifiers import answers
from services.reward.verifiers.base import CORRECT, VALID, Item, Verdict, Verifier, VerifierSettings
from shared import values
from shared.errors import InvalidInputError

_MAX_GROWTH = 16  # characters that one composed character, in any case, is spelled with at most, and more


_TEXT = {"type": "string", "pattern": r"\S"}


class ExactSettings(VerifierSettings):
    part: answers.Part = Field("response", description=answers.PART)
    ignore_case: bool = Field(False, description="compare casefolded")
    ignore_space: bool = Field(True, description="treat runs of white space as one space, and none at the ends")


class ExactVerifier(Verifier):
    """Reference: {"answer": "Paris"}, or {"answer": ["Paris", "Paris, France"]} where any one is right.

    Texts are compared in Unicode's composed form (NFC), so that two spellings of é are one.
    """

    name: ClassVar[str] = "exact"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "the text of the reference, character by character"
    reference_key: ClassVar[str] = "answer"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["answer"],
        "properties": {"answer": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}},
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": VALID}
    Settings: ClassVar[type[VerifierSettings]] = ExactSettings
    settings: ExactSettings

    def verify(self, item: Item) -> Verdict:
        wanted = item.reference.get("answer")
        allowed = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(allowed, list) or not allowed or not all(map(_says_something, allowed)):
            raise InvalidInputError(
                f"reference of exact has {values.field(item.reference, 'answer')}; expected a text or a list of texts, "
                "none of them blank"
            )
        text = answers.part(self.text, item, self.settings.part)
        correct = text is not None and self._is_one_of(text, allowed)
        return Verdict(float(correct), {"correct": float(correct), "valid": float(text is not None)})

    def _is_one_of(self, text: str, allowed: list[str]) -> bool:
        text = self._spaced(text)
        longest = max(len(self._spaced(other)) for other in allowed)
        # Composing takes quadratic time in a row of combining marks; longer texts cannot be equal.
        return len(text) <= _MAX_GROWTH * longest and self._normal(text) in map(self._normal, allowed)

    def _spaced(self, text: str) -> str:
        return " ".join(text.split()) if self.settings.ignore_space else text

    def _normal(self, text: str) -> str:
        text = unicodedata.normalize("NFC", self._spaced(text))
        return text.casefold() if self.settings.ignore_case else text


def _says_something(text: object) -> bool:
    return isinstance(text, str) and not answers.is_blank(text)
