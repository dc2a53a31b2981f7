"""Mathematics: is the final answer that of the reference?"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from services.reward.verifiers import answers, cpu
from services.reward.verifiers.base import (
    CORRECT,
    VALID,
    Item,
    Verdict,
    Verifier,
    VerifierSettings,
    needs,
)
from shared.errors import InvalidInputError

_MAX_GOLD_CHARACTERS = 4000


class MathSettings(VerifierSettings):
    answer: Literal["boxed", "stated"] = Field(
        "stated",
        description="where the answer may stand: only in \\boxed{}; or else also after 'answer is', 'Answer:' and "
        "'####', or as the whole of a one-line response",
    )
    decimals: int = Field(6, ge=1, le=12, description="places after the point in which a decimal must be right")
    unevaluated: bool = Field(
        False, description="accept what still has to be computed, such as 12 \\times 13 where the reference is 156"
    )
    max_answer_characters: int = Field(400, ge=1, le=4000, description="longer answers are wrong, unread")


class MathVerifier(Verifier):
    """Reference: {"answer": "\\\\frac{1}{2}"}: LaTeX or plain, a number, or a text with \\\\boxed{} or "#### 5" in it.

    Accepts what is equal in value: numbers, fractions, decimals, percentages, expressions, intervals, sets, tuples,
    matrices, equations, inequalities, words. The last box counts, or the last boxes where only commas,
    "and" or "or" stand between them; a box in unfinished thoughts or without its closing brace does not. Units:
    where both sides name one, both must agree after conversion; where one side does, it is ignored.
    Stricter than math-verify: the answer must be stated and not merely occur, computed, and relatively near.
    """

    name: ClassVar[str] = "math"
    version: ClassVar[str] = "2"
    description: ClassVar[str] = "a final answer that is equal to the reference"
    thinking: ClassVar[bool] = False
    reference_key: ClassVar[str] = "answer"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["answer"],
        "properties": {
            "answer": {
                "anyOf": [{"type": "number"}, {"type": "string", "pattern": r"\S", "maxLength": _MAX_GOLD_CHARACTERS}]
            }
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": VALID}
    Settings: ClassVar[type[VerifierSettings]] = MathSettings
    settings: MathSettings

    def start(self) -> None:
        """Imports sympy and fills the parser's caches, which takes a second."""
        with needs(self.name):
            from services.reward.verifiers.math import equivalence  # noqa: F401  # here, to name what is missing
        self.verify(Item("", r"\boxed{\sqrt{12}}", {"answer": r"2\sqrt{3}"}))

    def verify(self, item: Item) -> Verdict:
        from services.reward.verifiers.math import equivalence

        reference = _read_reference(item.reference)
        answer = self._answer(self.text(item))
        if not self._says_something(reference):
            raise InvalidInputError(f"reference of math is {reference[:200]!r}, which says nothing")
        if answer == reference:
            return _verdict(correct=True, valid=True)
        if answer is None or len(answer) > self.settings.max_answer_characters:
            return _verdict(correct=False, valid=False)
        gold = self._gold(reference)
        try:
            with cpu.limited(self.settings.judging_seconds):
                said = equivalence.read(answer)
                if not self.settings.unevaluated and equivalence.is_left_to_compute(said, gold):
                    return _verdict(correct=False, valid=True)
                return _verdict(*equivalence.equal(gold, said, self.settings.decimals))
        except (Exception, cpu.CpuTimeError):  # whatever sympy makes of it, it is the answer's fault
            return _verdict(correct=False, valid=False)

    def _says_something(self, reference: str) -> bool:
        """Whether anything is left of it without what only marks a formula."""
        try:
            with cpu.limited(self.settings.judging_seconds):
                return bool(_text(reference))
        except cpu.CpuTimeError:
            raise self._too_long(reference) from None

    def _gold(self, reference: str) -> Any:
        from services.reward.verifiers.math import equivalence

        try:
            with cpu.limited(self.settings.judging_seconds):
                gold = equivalence.read(reference)
                equivalence.parse(gold)
        except cpu.CpuTimeError:
            raise self._too_long(reference) from None
        return gold

    def _too_long(self, reference: str) -> InvalidInputError:
        return InvalidInputError(
            f"reference of math is {reference[:200]!r}, which takes more than judging_seconds = "
            f"{self.settings.judging_seconds} to read"
        )

    def _answer(self, text: str) -> str | None:
        if self.settings.answer == "boxed":
            return answers.boxed(text)
        return answers.final(text, self.settings.max_answer_characters, thinking=True)


def _read_reference(reference: Mapping[str, Any]) -> str:
    answer = reference.get("answer")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # JSON and Struct know only doubles
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if isinstance(answer, str) and len(answer) <= _MAX_GOLD_CHARACTERS:
        final = answers.final(answer, whole=_MAX_GOLD_CHARACTERS)
        if final:
            return final
    raise InvalidInputError(
        f"reference of math is {str(dict(reference))[:200]}; expected {{'answer': text or number}} with at most "
        f"{_MAX_GOLD_CHARACTERS} characters"
    )


@lru_cache(maxsize=1024)
def _text(reference: str) -> str:
    from services.reward.verifiers.math import equivalence

    return equivalence.read(reference).text


def _verdict(correct: bool, valid: bool) -> Verdict:
    return Verdict(float(correct), {"correct": float(correct), "valid": float(valid)})
