"""Does a pattern of the reference match?"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from services.reward.verifiers import answers, cpu
from services.reward.verifiers.base import CORRECT, VALID, Item, Verdict, Verifier, VerifierSettings
from shared import values
from shared.errors import InvalidInputError

_MAX_PATTERN_CHARACTERS = 10_000


class RegexSettings(VerifierSettings):
    pattern: str | None = Field(None, description="for all items; default: that of each reference")
    part: answers.Part = Field("response", description=answers.PART)
    whole: bool = Field(True, description="match all of the text; else anywhere in it")
    ignore_case: bool = Field(False, description="match without regard to case")

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.pattern is not None:
            _compile(self.pattern, self.ignore_case)
        return self


class RegexVerifier(Verifier):
    """Reference: {"pattern": "(Mon|Tues)day"}, in the syntax of Python's `re`; {} where the settings have a pattern.

    "." matches no line break. A response on which the pattern backtracks for longer than `judging_seconds` is wrong.
    """

    name: ClassVar[str] = "regex"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a regular expression of the reference or of the settings"
    reference_key: ClassVar[str] = "pattern"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"pattern": {"type": "string", "pattern": r"\S"}},
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": VALID}
    Settings: ClassVar[type[VerifierSettings]] = RegexSettings
    settings: RegexSettings

    def verify(self, item: Item) -> Verdict:
        pattern = item.reference.get("pattern", self.settings.pattern)
        if pattern is None:
            raise InvalidInputError(
                f"reference of regex has {values.field(item.reference, 'pattern')}, and neither have the settings; set "
                "reward.verifiers.NAME.pattern, or one in each reference"
            )
        try:
            compiled = _compile(pattern, self.settings.ignore_case)
        except ValueError as error:
            raise InvalidInputError(f"reference of regex: {error}") from None
        text = answers.part(self.text, item, self.settings.part)
        match = compiled.fullmatch if self.settings.whole else compiled.search
        try:
            with cpu.limited(self.settings.judging_seconds):
                correct = text is not None and match(text) is not None
        except cpu.CpuTimeError:
            correct = False
        return Verdict(float(correct), {"correct": float(correct), "valid": float(text is not None)})


@lru_cache(maxsize=1024)
def _compile(pattern: Any, ignore_case: bool) -> re.Pattern[str]:
    """Raises ValueError, saying why."""
    if not isinstance(pattern, str) or not pattern.strip() or len(pattern) > _MAX_PATTERN_CHARACTERS:
        expected = f"expected text that is not blank, of at most {_MAX_PATTERN_CHARACTERS} characters"
        raise ValueError(f"pattern is {values.shown(pattern)}; {expected}")
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern is {pattern[:100]!r}: {error}") from None
