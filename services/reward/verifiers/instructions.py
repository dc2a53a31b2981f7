"""Instructions on the form of a response that a program can check, as in IFEval (arXiv 2311.07911)."""

import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from services.reward.verifiers import cpu
from services.reward.verifiers.base import Item, Verdict, Verifier, VerifierSettings
from shared.errors import InvalidInputError
from shared.names import nearest
from shared.values import shown

_RELATIONS = {"at least": operator.ge, "less than": operator.lt, "at most": operator.le, "more than": operator.gt}
_YES_OR_NO = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# Arguments of one instruction, without those that are None. Reading what is not there raises KeyError.
Arguments = Mapping[str, Any]


class InstructionsSettings(VerifierSettings):
    partial: bool = Field(False, description="reward the share of the instructions that are followed; else all or none")


class InstructionsVerifier(Verifier):
    """Reference: {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, the columns of IFEval.

    Each instruction has its table of arguments in `kwargs`, at the same place. Sentences are told apart by their final
    marks, and language:response_language, which needs a model, is refused.
    """

    name: ClassVar[str] = "instructions"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "instructions on the form of a response, such as its length or words that it must have"
    thinking: ClassVar[bool] = False
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["instruction_id_list", "kwargs"],
        "properties": {
            "instruction_id_list": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "kwargs": {"type": "array", "items": {"type": ["object", "null"]}, "minItems": 1},
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": "1 where all instructions are followed, else 0",
        "followed": "share of the instructions that are followed",
    }
    Settings: ClassVar[type[VerifierSettings]] = InstructionsSettings
    settings: InstructionsSettings

    def verify(self, item: Item) -> Verdict:
        checks = _read(item.reference)
        text = self.text(item).strip()
        followed = 0
        for name, arguments in checks:
            try:
                with cpu.limited(self.settings.judging_seconds):
                    followed += bool(text) and _INSTRUCTIONS[name](text, arguments)
            except cpu.CpuTimeError:
                continue
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"reference of instructions: {name} has arguments {shown(dict(arguments))}: "
                    f"{type(error).__name__}: {error}"
                ) from None
        share = followed / len(checks)
        correct = float(followed == len(checks))
        return Verdict(share if self.settings.partial else correct, {"correct": correct, "followed": share})


def _read(reference: Mapping[str, Any]) -> list[tuple[str, Arguments]]:
    """Raises InvalidInputError, naming the place."""
    names, arguments = reference.get("instruction_id_list"), reference.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or not 0 < len(names) == len(arguments):
        raise InvalidInputError(
            f"reference of instructions is {shown(dict(reference))}; expected instruction_id_list and kwargs, two "
            "lists of equal length"
        )
    for name, table in zip(names, arguments, strict=True):
        if name not in _INSTRUCTIONS:
            hint = f"did you mean {nearest(name, _INSTRUCTIONS)!r}?" if isinstance(name, str) else "expected a name"
            raise InvalidInputError(f"reference of instructions names {shown(name)}, which is not checked here; {hint}")
        if table is not None and not isinstance(table, Mapping):
            raise InvalidInputError(f"reference of instructions: {name} has arguments {shown(table)}; expected a table")
    # Parquet fills the arguments that only others have with None.
    tables = [{key: value for key, value in (table or {}).items() if value is not None} for table in arguments]
    return list(zip(names, tables, strict=True))


def _compare(count: int, arguments: Arguments, limit: str, relation: str = "relation") -> bool:
    return bool(_RELATIONS[arguments[relation]](count, int(arguments[limit])))


def _words(arguments: Arguments, key: str) -> list[str]:
    words = arguments[key]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{key} is no list of words")
    return words


def _has(text: str, word: str) -> int:
    """How often a word stands there, without regard to case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _first_word(text: str, arguments: Arguments) -> bool:
    paragraphs = [part.strip() for part in re.split(r"\n\n+", text) if part.strip()]
    nth = int(arguments["nth_paragraph"])
    if len(paragraphs) != int(arguments["num_paragraphs"]) or not 1 <= nth <= len(paragraphs):
        return False
    first = paragraphs[nth - 1].split()[0].strip("\"'.,?!")
    return first.casefold() == str(arguments["first_word"]).casefold()


def _bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S.*$", text, re.MULTILINE))


def _highlights(text: str) -> int:
    return len(re.findall(r"\*\*(?=\S)[^\n*]+\*\*|(?<!\*)\*(?=\S)[^\n*]+\*(?!\*)", text))


def _is_json(text: str) -> bool:
    for beginning in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(beginning)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, _: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _parts(text: str, mark: str) -> list[str]:
    return [part for part in text.split(mark) if part.strip()]


def _ends(text: str, arguments: Arguments) -> bool:
    return text.strip().strip('"').casefold().endswith(str(arguments["end_phrase"]).strip().casefold())


_INSTRUCTIONS: Mapping[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda text, a: all(_has(text, word) for word in _words(a, "keywords")),
    "keywords:frequency": lambda text, a: _compare(_has(text, str(a["keyword"])), a, "frequency"),
    "keywords:forbidden_words": lambda text, a: not any(_has(text, word) for word in _words(a, "forbidden_words")),
    "keywords:letter_frequency": lambda text, a: _compare(
        text.lower().count(str(a["letter"]).lower()), a, "let_frequency", "let_relation"
    ),
    "length_constraints:number_sentences": lambda text, a: _compare(
        len([part for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]), a, "num_sentences"
    ),
    "length_constraints:number_paragraphs": lambda text, a: len(_parts(text, "***")) == int(a["num_paragraphs"]),
    "length_constraints:number_words": lambda text, a: _compare(len(re.findall(r"\w+", text)), a, "num_words"),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, a: (
        len(re.findall(r"\[[^\[\]]*\]", text)) >= int(a["num_placeholders"])
    ),
    "detectable_content:postscript": lambda text, a: (
        re.search(rf"^\s*{re.escape(str(a['postscript_marker']))}", text, re.IGNORECASE | re.MULTILINE) is not None
    ),
    "detectable_format:number_bullet_lists": lambda text, a: _bullets(text) == int(a["num_bullets"]),
    "detectable_format:constrained_response": lambda text, _: any(each in text for each in _YES_OR_NO),
    "detectable_format:number_highlighted_sections": lambda text, a: _highlights(text) >= int(a["num_highlights"]),
    "detectable_format:multiple_sections": lambda text, a: (
        len(re.findall(rf"\s?{re.escape(str(a['section_spliter']))}\s?\d+\s?", text)) >= int(a["num_sections"])
    ),
    "detectable_format:json_format": lambda text, _: _is_json(text),
    "detectable_format:title": lambda text, _: re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text) is not None,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, a: text.casefold().startswith(
        str(a["prompt_to_repeat"]).strip().casefold()
    ),
    "startend:end_checker": _ends,
    "startend:quotation": lambda text, _: len(text) > 1 and text.startswith('"') and text.endswith('"'),
    "change_case:capital_word_frequency": lambda text, a: _compare(
        sum(word.isupper() for word in re.findall(r"\w+", text)), a, "capital_frequency", "capital_relation"
    ),
    "change_case:english_capital": lambda text, _: text.isupper(),
    "change_case:english_lowercase": lambda text, _: text.islower(),
    "punctuation:no_comma": lambda text, _: "," not in text,
}
