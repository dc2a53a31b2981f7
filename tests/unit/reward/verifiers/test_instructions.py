"""Verifier instructions: each of IFEval's with a response that follows it and one that does not."""

from typing import Any

import pytest

from services.reward.verifiers.base import Item
from services.reward.verifiers.instructions import _INSTRUCTIONS, InstructionsSettings, InstructionsVerifier
from shared.errors import InvalidInputError

VERIFIER = InstructionsVerifier(InstructionsSettings())
AT_LEAST = {"relation": "at least"}
BULLETS = {"num_bullets": 2}
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["river", "sun."]}, "The River under the sun.", "The rivers under the sun."),
    "keywords:frequency": ({"keyword": "a", "frequency": 2, **AT_LEAST}, "a b A", "a b ab"),
    "keywords:forbidden_words": ({"forbidden_words": ["no"]}, "Not now", "Well, NO!"),
    "keywords:letter_frequency": ({"letter": "e", "let_frequency": 3, "let_relation": "less than"}, "Even", "Eleven e"),
    "length_constraints:number_sentences": ({"num_sentences": 2, **AT_LEAST}, "One. Two?", "3.5 is one."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weird"}, "a\n\nWeird, b", "weird a\n\nb",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [address]", "[name [x"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye\np.s. me", "No P.S. here"),
    "detectable_format:number_bullet_lists": (BULLETS, "* a\n* b", "* a\n- b\n* c"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a b* and **c**", "*a* and ** **b"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", "SECTION 1 SECTION",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    "detectable_format:title": ({}, "<<Joy>>\nText", "<< >> <Joy>"),
    "combination:two_responses": ({}, "a\n******\nb", "a ****** a"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. Done", "Done. Say it."),
    "startend:end_checker": ({"end_phrase": "Is that all?"}, 'So. "is that all?"', "Is that all? No."),
    "startend:quotation": ({}, '"All of it"', '"Some" of it'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 1, "capital_relation": "at least"}, "I say STOP", "say Stop",
    ),
    "change_case:english_capital": ({}, "ALL, 3!", "ALl"),
    "change_case:english_lowercase": ({}, "all, 3!", "aLl"),
    "punctuation:no_comma": ({}, "a; b", "a, b"),
}  # fmt: skip


def verdict(response: str, names: Any, arguments: Any, **settings: Any) -> tuple[float, float]:
    verifier = InstructionsVerifier(InstructionsSettings(**settings))
    made = verifier.verify(Item("", response, {"instruction_id_list": names, "kwargs": arguments}))
    return made.reward, made.parts["followed"]


def test_every_instruction_has_a_case() -> None:
    assert CASES.keys() == _INSTRUCTIONS.keys()


@pytest.mark.parametrize("name", CASES)
def test_one_response_follows_and_the_other_does_not(name: str) -> None:
    arguments, followed, broken = CASES[name]
    padded = {**arguments, "other": None}  # as Parquet has them
    assert verdict(f"<think>a, B</think>{followed}", [name], [padded]) == (1, 1)
    assert verdict(broken, [name], [arguments]) == (0, 0)
    assert verdict("", [name], [arguments]) == (0, 0)


def test_all_or_their_share() -> None:
    names, arguments = ["punctuation:no_comma", "detectable_format:number_bullet_lists"], [None, BULLETS]
    assert verdict("* a", names, arguments) == (0, 0.5)
    assert verdict("* a", names, arguments, partial=True) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("names", "arguments", "said"),
    [
        (["punctuation:no_coma"], [{}], "did you mean 'punctuation:no_comma'"),
        (["language:response_language"], [{"language": "de"}], "is not checked here"),
        ([7], [{}], "expected a name"),
        ([], [], "two lists of equal length"),
        (["punctuation:no_comma"], [], "two lists of equal length"),
        ("punctuation:no_comma", {}, "two lists of equal length"),
        (["punctuation:no_comma"], ["x"], "expected a table"),
        (["keywords:existence"], [{}], "keywords:existence has arguments {}: KeyError: 'keywords'"),
        (["keywords:existence"], [{"keywords": "one"}], "keywords is no list of words"),
        (["keywords:frequency"], [{"keyword": "a", "frequency": 2, "relation": "about"}], "KeyError: 'about'"),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": "two"}], "ValueError: invalid literal"),
    ],
)
def test_a_reference_that_says_nothing_is_the_tasks_fault(names: Any, arguments: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=f"reference of instructions.*{said}"):
        verdict("text", names, arguments)


def test_long_responses_are_judged_within_their_time() -> None:
    for name, (arguments, _, _) in CASES.items():
        for response in ("*" * 200_000, "[" * 200_000, "<" * 200_000, " \n" * 100_000 + "x", "a" * 200_000):
            assert VERIFIER.verify(
                Item("", response, {"instruction_id_list": [name], "kwargs": [arguments]})
            ).reward in (0, 1)
