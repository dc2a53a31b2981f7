"""The verifiers of text and form: what each accepts, what it refuses, what the task is at fault for."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, VerifierSettings
from services.reward.verifiers.choice import ChoiceVerifier
from services.reward.verifiers.exact import ExactSettings, ExactVerifier
from services.reward.verifiers.format import FormatSettings, FormatVerifier
from services.reward.verifiers.regex import RegexSettings, RegexVerifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError
from tests.support.judges import judge

CHOICE = ChoiceVerifier(VerifierSettings())
CAPITALS = {"answer": "B", "choices": ["Rome", "Paris", "Oslo"]}


@pytest.mark.parametrize(
    ("response", "correct", "valid"),
    [
        ("B", 1, 1),
        ("(b)", 1, 1),
        ("**B**", 1, 1),
        ("B.", 1, 1),
        ("B) Paris", 1, 1),
        ("Paris", 1, 1),
        (r"It is \boxed{B}.", 1, 1),
        (r"\boxed{\text{(B)}}", 1, 1),
        ("Because of the Seine.\nAnswer: B", 1, 1),
        ("The correct answer is option B.", 1, 1),
        ("<think>A? C?</think>B", 1, 1),
        ("Answer: A. No.\nAnswer: B", 1, 1),
        ("A", 0, 1),
        ("A, B", 0, 1),
        ("A or B or C", 0, 0),
        ("D", 0, 0),
        (r"\boxed{A} and at last \boxed{C}", 0, 1),
        ("A capital that I know is B", 0, 0),
        ("<think>B", 0, 0),
        ("", 0, 0),
        ("<think>A?</think><answer>B</answer>", 1, 1),
        ("<answer>B", 0, 0),
        ("A, no: B", 1, 1),
        ("A. Wait, actually B", 1, 1),
        ("B, no doubt.", 1, 1),
        ("B, no: A", 0, 1),
        ("(A) or (B)", 0, 0),
        ("(B) or (A)", 0, 0),
        ("B, or maybe A", 0, 0),
        ("B, Paris or a town near it", 1, 1),
        (r"\boxed{\text{Paris}}", 1, 1),
        (r"\boxed{\textbf{(B)}\ \text{Paris}}", 1, 1),
        ("**Answer: B**", 1, 1),
        ("Final Answer: **B**", 1, 1),
    ],
)
def test_choices(response: str, correct: float, valid: float) -> None:
    assert judge(CHOICE, response, CAPITALS).parts == {"correct": correct, "valid": valid}


@pytest.mark.parametrize(
    ("response", "correct"), [("A, C", 1), ("C and A", 1), ("(A), (C)", 1), ("A", 0), ("A, B, C", 0)]
)
def test_several_choices_that_are_right_together(response: str, correct: float) -> None:
    assert judge(CHOICE, response, {"answer": ["A", "C"]}).parts["correct"] == correct


@pytest.mark.parametrize(
    "reference", [{}, {"answer": "b"}, {"answer": []}, {"answer": "D", "choices": ["x", "y"]}, {"answer": 1.0}]
)
def test_an_unusable_choice_is_the_tasks_fault(reference: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="reference of choice"):
        judge(CHOICE, "B", reference)


@pytest.mark.parametrize(
    ("settings", "response", "correct"),
    [
        ({}, "Paris", 1),
        ({}, "  Paris \n", 1),
        ({}, "Paris,  France", 1),
        ({}, "paris", 0),
        ({}, "The answer is Paris", 0),
        ({"ignore_case": True}, "PARIS", 1),
        ({"ignore_space": False}, "Paris ", 0),
        ({"part": "answer"}, r"So \boxed{Paris}", 1),
        ({"part": "answer"}, r"<think>\boxed{Paris}</think>", 0),
        ({"thinking": False}, "<think>Oslo?</think>Paris", 1),
        ({"part": "answer"}, "Final Answer: **Paris**", 1),
        ({"part": "answer"}, "The answer is **Paris**.", 1),
        ({"part": "answer"}, "**Answer: Paris**", 1),
        ({"part": "answer"}, "<think>Oslo?</think><answer>Paris</answer>", 1),
        ({"part": "answer"}, "<think>Oslo?</think>\n<answer>\nParis\n</answer>\n", 1),
        ({"part": "answer"}, "<answer>Oslo</answer> or <answer>Paris</answer>", 1),
        ({"part": "answer"}, "<answer>Paris", 0),
        ({}, "Paris" + " " * 100_000, 1),
    ],
)
def test_exact_texts(settings: dict[str, Any], response: str, correct: float) -> None:
    verifier = ExactVerifier(ExactSettings(**settings))
    assert judge(verifier, response, {"answer": ["Paris", "Paris, France"]}).reward == correct


def test_two_spellings_of_one_character_are_equal() -> None:
    assert judge(ExactVerifier(ExactSettings()), "cafe\u0301", {"answer": "caf\u00e9"}).reward == 1


@pytest.mark.parametrize("answer", [None, [], 3, ["a", 3]])
def test_an_unusable_text_is_the_tasks_fault(answer: Any) -> None:
    with pytest.raises(InvalidInputError, match="reference of exact has answer"):
        judge(ExactVerifier(ExactSettings()), "a", {"answer": answer})


@pytest.mark.parametrize(
    ("settings", "response", "correct"),
    [
        ({}, "Monday", 1),
        ({}, "on Monday", 0),
        ({"whole": False}, "on Monday", 1),
        ({}, "monday", 0),
        ({"ignore_case": True}, "monday", 1),
        ({"part": "answer"}, "Answer: Monday.", 1),
    ],
)
def test_patterns(settings: dict[str, Any], response: str, correct: float) -> None:
    verifier = RegexVerifier(RegexSettings(**settings))
    assert judge(verifier, response, {"pattern": "(Mon|Tues)day"}).reward == correct


def test_a_pattern_of_the_settings_serves_all_references() -> None:
    verifier = RegexVerifier(RegexSettings(pattern=r"\d+"))
    assert judge(verifier, "12", {}).reward == 1
    assert judge(verifier, "x", {"pattern": "x"}).reward == 1


@pytest.mark.parametrize("pattern", [None, 3, "(", "a{9999999999}", "x" * 20_000])
def test_an_unusable_pattern_is_the_tasks_fault(pattern: Any) -> None:
    with pytest.raises(InvalidInputError, match="reference of regex"):
        judge(RegexVerifier(RegexSettings()), "a", {"pattern": pattern})


def test_an_unusable_pattern_of_the_settings_is_known_at_once() -> None:
    with pytest.raises(ValidationError, match="unterminated"):
        RegexSettings(pattern="(")


async def test_a_response_that_makes_a_pattern_backtrack_for_ever_is_wrong() -> None:
    """It has a verdict, or a policy could have its group dropped."""
    settings = RewardSettings(processes=1)
    scorer = Scorer(make_verifiers({}), settings)
    reference = {"pattern": r"(a+)+b|(?=(c+)+\2d)c"}
    try:
        scored = await scorer.score("regex", [Item("", text, reference) for text in ("aab", "a" * 64, "c" * 64)])
    finally:
        await scorer.close()
    assert [s.outcome for s in scored] == [Outcome.SCORED] * 3
    assert [s.verdict.reward for s in scored if s.verdict] == [1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "response", "correct"),
    [
        ({}, "<think>hm</think>5", 1),
        ({}, " <think>hm</think>\n5", 1),
        ({}, "5", 0),
        ({}, "<think>hm</think>", 0),
        ({}, "<think></think>5", 0),
        ({}, "so <think>hm</think>5", 0),
        ({}, "<think>a</think>5<think>b</think>6", 0),
        ({}, "</think>hm<think>5", 0),
        ({}, "<think>\u200b\u2060\ufeff</think>5", 0),
        ({}, "<think>\u3164 \u2800</think>5", 0),
        ({}, "<think>hm</think>\u200b", 0),
        ({}, "\u200b<think>hm</think>5", 1),
        ({}, "<think>\u2026</think>5", 1),
        ({"opened_by_prompt": True}, "hm</think>5", 1),
        ({"opened_by_prompt": True}, "<think>hm</think>5", 0),
        ({"think_tag": "reason"}, "<reason>hm</reason>5", 1),
        ({"answer_tag": "answer"}, "<think>hm</think>\n<answer>5</answer>", 1),
        ({"answer_tag": "answer"}, "<think>hm</think> is <answer>5</answer>", 0),
        ({"answer_tag": "answer"}, "<think>hm</think><answer>5</answer>!", 0),
        ({"answer_tag": "answer"}, "<think>hm<answer>5</answer></think>", 0),
    ],
)
def test_forms(settings: dict[str, Any], response: str, correct: float) -> None:
    assert judge(FormatVerifier(FormatSettings(**settings)), response, {}).parts["correct"] == correct


@pytest.mark.parametrize(("length", "taken"), [(90, 0.0), (100, 0.0), (150, -0.25), (200, -0.5), (900, -0.5)])
def test_length_is_punished_from_the_soft_to_the_hard_limit(length: int, taken: float) -> None:
    verifier = FormatVerifier(FormatSettings(free_characters=100, max_characters=200, length_penalty=0.5))
    frame = "<think>.</think>"
    verdict = judge(verifier, frame + "x" * (length - len(frame)), {})
    assert verdict.parts == {"correct": 1.0, "valid": 1.0, "length": taken}
    assert verdict.reward == 1.0 + taken


@pytest.mark.parametrize("settings", [{"free_characters": 5}, {"free_characters": 5, "max_characters": 5}])
def test_lengths_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FormatSettings(**settings)
