"""The math verifier on pairs that anybody can check, beside math-verify itself, and against hostile input."""

import asyncio
from itertools import chain

import math_verify
import pytest

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item
from services.reward.verifiers.math.verifier import MathSettings, MathVerifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError
from tests.support.math_pairs import BOXED, DISAGREEMENTS, RESPONSES

VERIFIER = MathVerifier(MathSettings())
TOWER = "9^{9^{9^{9}}}"


def correct(gold: object, response: str, verifier: MathVerifier = VERIFIER) -> bool:
    return verifier.verify(Item("", response, {"answer": gold})).parts["correct"] == 1.0


def box(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(("gold", "answer", "right"), BOXED)
def test_boxed_answers(gold: str, answer: str, right: bool) -> None:
    assert correct(gold, box(answer)) is right


@pytest.mark.parametrize(("gold", "response", "right"), RESPONSES)
def test_whole_responses(gold: str, response: str, right: bool) -> None:
    assert correct(gold, response) is right


def test_there_are_enough_pairs_and_none_twice() -> None:
    pairs = [(gold, answer) for gold, answer, _ in chain(BOXED, RESPONSES)]
    assert len(pairs) >= 200
    assert len(BOXED) == len({(gold, answer) for gold, answer, _ in BOXED})
    assert len(RESPONSES) == len({(gold, response) for gold, response, _ in RESPONSES})


def test_the_disagreements_with_math_verify_are_those_that_are_listed() -> None:
    def says(gold: str, response: str) -> bool:
        return bool(math_verify.verify(math_verify.parse(gold), math_verify.parse(response)))

    differ = {(gold, answer) for gold, answer, right in BOXED if says(f"${gold}$", box(answer)) is not right}
    differ |= {(gold, response) for gold, response, right in RESPONSES if says(gold, response) is not right}
    listed = list(chain.from_iterable(DISAGREEMENTS.values()))
    assert differ == set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("response", "valid"),
    [(r"\boxed{7}", 1), ("I give up.\nSorry", 0), (r"\boxed{)(}", 0), (r"\boxed{" + "1+" * 300 + "1}", 0)],
)
def test_valid_says_whether_there_is_an_answer_that_can_be_read(response: str, valid: float) -> None:
    assert VERIFIER.verify(Item("", response, {"answer": "5"})).parts == {"correct": 0.0, "valid": valid}


def test_numbers_of_a_struct_are_references() -> None:
    assert correct(3.0, r"\boxed{3}")
    assert correct(0.5, r"\boxed{\frac12}")


@pytest.mark.parametrize(
    "reference", [{}, {"answer": ""}, {"answer": None}, {"answer": True}, {"answer": ["1"]}, {"answer": "1" * 5000}]
)
def test_an_unusable_reference_is_the_tasks_fault(reference: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="reference of math"):
        VERIFIER.verify(Item("", r"\boxed{1}", reference))


def test_only_boxes_count_where_the_settings_say_so() -> None:
    strict = MathVerifier(MathSettings(answer="boxed"))
    assert correct("5", r"\boxed{5}", strict)
    assert not correct("5", "The answer is 5.", strict)
    assert not correct("5", "5", strict)


def test_unevaluated_answers_count_where_the_settings_say_so() -> None:
    assert correct("156", r"\boxed{12 \times 13}", MathVerifier(MathSettings(unevaluated=True)))


def test_decimals_say_how_near_a_decimal_must_be() -> None:
    near = MathVerifier(MathSettings(decimals=2))
    assert correct(r"\frac{1}{3}", r"\boxed{0.33}", near)
    assert not correct(r"\frac{1}{3}", r"\boxed{0.3}", near)


@pytest.mark.parametrize(
    "answer", [TOWER, r"10^{10^{10}}", "(10!)!", "99999!", "(x+1)^{99999}", r"\frac{1}{" + TOWER + "}", "2^{99999}"]
)
def test_numbers_too_large_to_compute_are_wrong_answers(answer: str) -> None:
    """The deadline of the test suite would end this one, were they computed."""
    verdict = MathVerifier(MathSettings(unevaluated=True)).verify(Item("", rf"\boxed{{{answer}}}", {"answer": "1"}))
    assert verdict.parts == {"correct": 0.0, "valid": 1.0}


async def test_a_hostile_expression_ends_at_the_deadline_in_a_killed_process() -> None:
    """math-verify computes binomials while it reads them, where no guard of ours can see them."""
    hostile = Item("", r"\boxed{\binom{99999999}{49999999}}", {"answer": r"\binom{7}{3} + x"})
    fine = Item("", r"\boxed{\frac{1}{2}}", {"answer": "0.5"})
    settings = RewardSettings(processes=1, timeout_seconds=2)
    scorer = Scorer(make_verifiers({}), settings)
    try:
        before = await scorer.score("math", [fine])
        scored = await asyncio.wait_for(scorer.score("math", [fine, hostile, fine]), 60)
    finally:
        await scorer.close()
    assert [s.outcome for s in (*before, *scored)] == [
        Outcome.SCORED,
        Outcome.SCORED,
        Outcome.TIMED_OUT,
        Outcome.SCORED,
    ]
    assert scored[2].verdict is not None
    assert scored[2].verdict.reward == 1.0
