"""The math verifier on pairs that anybody can check, beside math-verify itself, and against hostile input."""

from itertools import chain

import math_verify
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers import answers
from services.reward.verifiers.base import Item
from services.reward.verifiers.math import equivalence
from services.reward.verifiers.math.verifier import MathSettings, MathVerifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError
from tests.support.math_equalities import EQUALITIES
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


HOSTILE = [
    TOWER,
    r"10^{10^{10}}",
    "(10!)!",
    "99999!",
    "1e400",
    "1e99999999",
    "(a+b+c+d)^{99}",
    "x^{99999999999}",
    "(1," + TOWER + ")",
    TOWER + "i",
    r"\binom{99999999}{49999999}",
    r"\Gamma(99999999)",
    r"\operatorname{zeros}(99999,99999)",
    r"\gcd(10^{10^{10}},2)",
    r"\sin(10^{100})",
    r"\sqrt[99999999999]{2}",
    r"e^{e^{e^{e^{e}}}}",
    "|x|" * 60,
    "5" + "!" * 100,
    "-" * 390 + "5",
    r"\frac{" * 60 + "1" + "}{2}" * 60,
    "(" * 100 + "5" + ")" * 100,
    "1," * 199 + "1",
    "x<" * 190 + "x",
    "x_" * 190 + "x",
    "=".join("x" * 190),
    r"\pm" * 60 + "1",
    r"\cup".join(["(1,2)"] * 50),
    r"\sum_{k=1}^{10^9} \sin k",
    r"\prod_{k=1}^{1000000} k",
    "(1,i)",
    "x<i",
    r"i \ge 2",
    r"\frac{1}{0}",
    r"\infty-\infty",
    "0^0",
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("gold", ["5", "x+1", "(3,4)", r"\{3,4\}", "x<3", "y=2x+1", r"\binom{7}{3} + x", "no"])
def test_hostile_answers_are_wrong_whatever_the_reference(gold: str, hostile: str) -> None:
    assert not correct(gold, rf"\boxed{{{hostile}}}")
    assert not correct(gold, rf"\boxed{{{hostile}}}", MathVerifier(MathSettings(unevaluated=True)))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_answer_equals_itself(hostile: str) -> None:
    assert correct(rf"\boxed{{{hostile}}}", rf"\boxed{{{hostile}}}")


async def test_hostile_answers_have_verdicts_and_harm_no_neighbour() -> None:
    fine = Item("", r"\boxed{\frac{1}{2}}", {"answer": "0.5"})
    hostile = [Item("", rf"\boxed{{{answer}}}", {"answer": r"\binom{7}{3} + x"}) for answer in HOSTILE]
    nested = Item("", r"\boxed{" * 400 + "5" + "}" * 400, {"answer": "5"})
    scorer = Scorer(make_verifiers({}), RewardSettings(processes=1, timeout_seconds=60))
    try:
        scored = await scorer.score("math", [fine, *hostile, nested, fine])
    finally:
        await scorer.close()
    assert [s.outcome for s in scored] == [Outcome.SCORED] * len(scored)
    assert [s.verdict.reward for s in scored if s.verdict] == [1.0, *[0.0] * len(hostile), 0.0, 1.0]


def test_what_takes_too_long_is_wrong_and_not_the_end_of_the_process() -> None:
    verifier = MathVerifier(MathSettings(unevaluated=True, judging_seconds=0.05))
    verdict = verifier.verify(Item("", r"\boxed{\prod_{k=1}^{1000001} k}", {"answer": "5"}))
    assert verdict.parts == {"correct": 0.0, "valid": 0.0}


UNEVALUATED = MathVerifier(MathSettings(unevaluated=True))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *((one, other, True) for one, like, _ in EQUALITIES for other in like),
        *((one, other, False) for one, _, unlike in EQUALITIES for other in unlike),
    ],
)
def test_equalities_in_both_directions(one: str, other: str, same: bool) -> None:
    first, second = rf"\boxed{{{one}}}", rf"\boxed{{{other}}}"
    assert correct(first, second, UNEVALUATED) is same
    assert correct(second, first, UNEVALUATED) is same
    assert correct(first, first)
    assert correct(second, second)


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, answer, right in BOXED if right])
def test_right_answers_are_so_in_both_directions(gold: str, answer: str) -> None:
    assert correct(rf"\boxed{{{answer}}}", rf"\boxed{{{gold}}}", UNEVALUATED)


def latex(depth: int = 3) -> st.SearchStrategy[str]:
    atoms = st.sampled_from(
        ["1", "2", "x", "y", "i", "e", r"\pi", "0.5", r"\infty", "12", r"\text{ cm}", "-3", r"50\%"]
    )
    shapes = st.sampled_from(
        [
            r"\frac{A}{B}", r"\sqrt{A}", "A+B", "A-B", "AB", "A^{B}", "(A,B)", "[A,B)", r"\{A,B\}", "A,B", "A=B", "A<B",
            r"A \le B", "|A|", r"\sin A", r"\log_A B", "A!", r"\binom{A}{B}", r"\pm A", r"A\text{ or }B", r"A \cup B",
            r"\begin{pmatrix}A&B\end{pmatrix}", r"\boxed{A}", "(A)", "A:B", r"A\text{ B}", "{A",
            r"\textbf{(A)}\ B", r"A\}",
        ]
    )  # fmt: skip

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.builds(lambda shape, a, b: str(shape).replace("A", a).replace("B", b), shapes, inner, inner)

    return st.recursive(atoms, grown, max_leaves=depth)


@settings(deadline=None, max_examples=300)
@given(latex(), latex())
def test_equality_is_reflexive_symmetric_and_never_fails(one: str, other: str) -> None:
    a, b = equivalence.read(one), equivalence.read(other)
    assert equivalence.equal(a, a, 6) == (True, True)
    assert equivalence.equal(a, b, 6) == equivalence.equal(b, a, 6)


@settings(deadline=None, max_examples=300)
@given(latex(4), latex(4))
def test_every_answer_has_a_verdict_and_equals_itself(gold: str, answer: str) -> None:
    try:
        assert correct(gold, answer, UNEVALUATED) in (True, False)
    except InvalidInputError:
        return
    said = rf"\boxed{{{gold}}}"
    if answers.final(said) is not None:
        assert correct(said, said)
