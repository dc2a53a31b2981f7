"""Multiple choice: which letters does the response settle on?"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from services.reward.verifiers import answers
from services.reward.verifiers.base import Item, Verdict, Verifier
from shared.errors import InvalidInputError

# "B", "(B)", "B.", "B) Paris", "\text{B}", "option B"; several: "A, C" and "A and C".
_LETTER = r"\(?(?P<{0}>[A-Za-z])\)?"
_LEAD = r"(?:(?:option|choice)s?\s+|\\(?:text|mathrm|textbf|mathbf)\s*\{\s*)?"
_ONE = re.compile(rf"{_LEAD}{_LETTER.format('letter')}\s*\}}?(?:\s*[.):,]\s*.*|\s*)", re.DOTALL)
_SEVERAL = re.compile(r"\(?[A-Za-z]\)?(?:(?:\s*(?:,|;|&|\band\b)\s*)+\(?[A-Za-z]\)?)+\.?")
_MAX_ANSWER_CHARACTERS = 1000


class ChoiceVerifier(Verifier):
    """Reference: {"answer": "B"} or, where several are right together, {"answer": ["A", "C"]}.

    With {"choices": ["Rome", "Paris"]} a letter beyond the last choice is no valid answer, and the text of a choice,
    given instead of its letter, counts. The answer is the last box, what follows the last "answer is" or "Answer:",
    or the whole of a one-line response; "B", "(b)", "B.", "B) Paris", "option B". Letters elsewhere do not count.
    """

    name: ClassVar[str] = "choice"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "the letter, or the letters, of a multiple-choice answer"

    def verify(self, item: Item) -> Verdict:
        wanted, choices = _read_reference(item.reference)
        answer = answers.final(item.response, whole=_MAX_ANSWER_CHARACTERS)
        chosen = _letters(answer[:_MAX_ANSWER_CHARACTERS], choices) if answer else frozenset()
        limit = len(choices) if choices else 26
        valid = bool(chosen) and all(ord(letter) - ord("A") < limit for letter in chosen)
        correct = valid and chosen == wanted
        return Verdict(float(correct), {"correct": float(correct), "valid": float(valid)})


def _letters(answer: str, choices: list[str]) -> frozenset[str]:
    said = answer.strip().rstrip(".").casefold()
    for index, choice in enumerate(choices):
        if said == choice.strip().rstrip(".").casefold():
            return frozenset(chr(ord("A") + index))
    bare = re.sub(r"\*\*", "", answer).strip()
    if _SEVERAL.fullmatch(bare):
        return frozenset(re.findall(r"\b[A-Z]\b", bare.upper()))
    match = _ONE.fullmatch(bare)
    return frozenset(match["letter"].upper()) if match else frozenset()


def _read_reference(reference: Mapping[str, Any]) -> tuple[frozenset[str], list[str]]:
    answer, choices = reference.get("answer"), reference.get("choices", [])
    letters = [answer] if isinstance(answer, str) else answer
    well = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    limit = len(choices) if well and choices else 26
    if not (
        well
        and isinstance(letters, list)
        and letters
        and all(
            isinstance(letter, str) and re.fullmatch("[A-Z]", letter) and ord(letter) - ord("A") < limit
            for letter in letters
        )
    ):
        raise InvalidInputError(
            f"reference of choice is {str(dict(reference))[:200]}; expected {{'answer': 'B'}} or a list of letters, "
            "and with 'choices', a list of texts, a letter for one of them"
        )
    return frozenset(letters), choices
