"""Multiple choice: which letters does the response settle on?"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from services.reward.verifiers import answers
from services.reward.verifiers.base import (
    CORRECT,
    VALID,
    Item,
    Verdict,
    Verifier,
)
from shared.errors import InvalidInputError

# "B", "(B)", "B.", "B) Paris", "B, Paris", "(B)\ Paris", "option B"; several: "A, C" and "A and C".
_ONE = re.compile(
    r"(?:(?:option|choice)s? )?"
    r"(?:\((?P<bracketed>[A-Za-z])\)(?P<said>[ \\~.:,-].*)?|(?P<bare>[A-Za-z])(?P<rest> ?[.):,-].*)?)"
)
_ANOTHER = re.compile(r"\([A-Za-z]\)|\b(?:or|and)\b.*\b[A-Z]\b(?! [a-z])")
_SEVERAL = re.compile(r"\(?[A-Za-z]\)?(?:(?: ?(?:,|;|&|\band\b))+ ?\(?[A-Za-z]\)?)+\.?")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# What takes back the letter before it: "A, no: B".
_TAKEN_BACK = re.compile(r"\b(?:no|wait|actually|rather|sorry|i mean|correction)\b[\s,.:;!-]*", re.IGNORECASE)
_MAX_ANSWER_CHARACTERS = 1000
_LETTER = {"type": "string", "pattern": "^[A-Z]$"}


class ChoiceVerifier(Verifier):
    """Reference: {"answer": "B"} or, where several are right together, {"answer": ["A", "C"]}.

    With {"choices": ["Rome", "Paris"]} a letter beyond the last choice is no valid answer, and the text of a choice,
    given instead of its letter, counts. The answer is the last box, what follows the last "answer is" or "Answer:",
    or the whole of a one-line response; "B", "(b)", "B.", "B) Paris", "option B". Letters elsewhere do not count.
    """

    name: ClassVar[str] = "choice"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "the letter, or the letters, of a multiple-choice answer"
    thinking: ClassVar[bool] = False
    reference_key: ClassVar[str] = "answer"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["answer"],
        "properties": {
            "answer": {"anyOf": [_LETTER, {"type": "array", "items": _LETTER, "minItems": 1}]},
            "choices": {"type": "array", "items": {"type": "string"}},
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": VALID}

    def verify(self, item: Item) -> Verdict:
        wanted, choices = _read_reference(item.reference)
        answer = answers.final(self.text(item), whole=_MAX_ANSWER_CHARACTERS, thinking=True)
        chosen = _letters(answer[:_MAX_ANSWER_CHARACTERS], choices) if answer else frozenset()
        limit = len(choices) if choices else 26
        valid = bool(chosen) and all(ord(letter) - ord("A") < limit for letter in chosen)
        correct = valid and chosen == wanted
        return Verdict(float(correct), {"correct": float(correct), "valid": float(valid)})


def _letters(answer: str, choices: list[str]) -> frozenset[str]:
    bare = " ".join(_TEXT.sub(r"\1", answer.replace("**", "")).split())
    for text in (answer, bare):
        for index, choice in enumerate(choices):
            if _folded(text) == _folded(choice):
                return frozenset(chr(ord("A") + index))
    for said in reversed(_TAKEN_BACK.split(bare)):
        said = said.strip(" ,;")
        if _SEVERAL.fullmatch(said):
            return frozenset(re.findall(r"\b[A-Z]\b", said.upper()))
        match = _ONE.fullmatch(said)
        if match and not _ANOTHER.search(match["said"] or match["rest"] or ""):
            return frozenset((match["bracketed"] or match["bare"]).upper())
    return frozenset()


def _folded(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


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
