"""The verifier `weighted`: several verifiers a prompt, which the row names."""

import asyncio
from typing import Any

import pytest

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, Verdict, VerifierSettings
from services.reward.verifiers.registry import make_verifiers
from services.reward.verifiers.weighted import WeightedVerifier
from shared.errors import InvalidInputError
from tests.support.judges import Fixed

RIGHT = Verdict(1.0, {"correct": 1.0, "valid": 1.0})
FORMLESS = Verdict(-0.5, {"correct": 0.0, "valid": 0.0, "length": -0.5})


async def judged(*entries: Any, others: Fixed | None = None, **more: Any) -> Verdict:
    item = Item("2+2?", "4", {"verifiers": list(entries), **more})
    return await WeightedVerifier(VerifierSettings()).verify(item, others or Fixed(a=RIGHT, f=FORMLESS))


async def test_the_reward_is_the_weighted_sum_and_the_first_says_what_is_correct() -> None:
    verdict = await judged({"verifier": "a", "weight": 2}, {"verifier": "f", "weight": 0.5})
    assert verdict.reward == 2 * 1.0 + 0.5 * -0.5
    assert verdict.parts == {
        "a.reward": 1.0,
        "a.correct": 1.0,
        "a.valid": 1.0,
        "f.reward": -0.5,
        "f.correct": 0.0,
        "f.valid": 0.0,
        "f.length": -0.5,
        "correct": 1.0,
        "valid": 0.0,
    }
    assert (await judged({"verifier": "f"}, {"verifier": "a"})).parts["correct"] == 0.0
    assert (await judged({"verifier": "a", "weight": -1})).reward == -1.0


async def test_each_part_has_its_own_reference() -> None:
    others = Fixed(a=RIGHT, f=RIGHT)
    await judged({"verifier": "a", "reference": {"answer": "4"}}, {"verifier": "f"}, others=others)
    await judged({"verifier": "a", "reference": "4"}, others=others)
    assert [dict(asked.reference) for _, asked in others.asked] == [{"answer": "4"}, {}, {"answer": "4"}]
    assert {(asked.prompt, asked.response) for _, asked in others.asked} == {("2+2?", "4")}


async def test_one_verifier_may_stand_there_twice() -> None:
    verdict = await judged({"verifier": "a"}, {"verifier": "a"}, {"verifier": "a", "name": "last"})
    assert {"a.reward", "a_2.reward", "last.reward"} <= verdict.parts.keys()
    assert verdict.reward == 3.0


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], r"has verifiers = \[\]; expected a list of 1 to 16 objects"),
        ([{"verifier": "a"}] * 17, "expected a list of 1 to 16"),
        (["a"], r"verifiers\[0\] is 'a'; expected an object with verifier, weight"),
        ([{"verifier": "a"}, {"verifier": "form"}], r"verifiers\[1\]\.verifier is 'form'; did you mean 'f'"),
        ([{"weight": 1}], r"verifiers\[0\]\.verifier is None; expected a name"),
        ([{"verifier": ["a"]}], r"verifiers\[0\]\.verifier is \['a'\]; expected a name"),
        ([{"verifier": "a", "wieght": 1}], r"verifiers\[0\] has 'wieght'; did you mean 'weight'"),
        ([{"verifier": "a", "weight": "1"}], r"verifiers\[0\]\.weight is '1'; expected a finite number"),
        ([{"verifier": "a", "weight": True}], r"verifiers\[0\]\.weight is True"),
        ([{"verifier": "a", "weight": None}], r"verifiers\[0\]\.weight is None"),
        ([{"verifier": "a", "weight": float("nan")}], r"verifiers\[0\]\.weight is nan"),
        (
            [{"verifier": "a", "name": "x"}, {"verifier": "f", "name": "x"}],
            r"verifiers\[1\]\.name is 'x'; expected a text",
        ),
        ([{"verifier": "a", "name": ""}], r"verifiers\[0\]\.name is ''"),
        ([{"verifier": "a", "name": 3}], r"verifiers\[0\]\.name is 3"),
    ],
)
async def test_a_reference_that_cannot_be_used_names_the_place_and_the_fix(entries: list[Any], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        await judged(*entries)


async def test_what_stands_beside_the_verifiers_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has answer beside verifiers"):
        await judged({"verifier": "a"}, answer=4)


@pytest.mark.parametrize("verifiers", [None, "math", {"verifier": "a"}, 3])
async def test_a_reference_without_a_list_is_refused(verifiers: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected a list of 1 to 16"):
        await WeightedVerifier(VerifierSettings()).verify(Item("", "", {"verifiers": verifiers}), Fixed(a=RIGHT))


async def test_rows_choose_their_verifiers_in_the_scorer_and_none_waits_for_itself() -> None:
    tables: dict[str, dict[str, Any]] = {"both": {"kind": "composite", "parts": {"row": {"verifier": "weighted"}}}}
    scorer = Scorer(make_verifiers(tables), RewardSettings(processes=1))
    exact = {"verifier": "exact", "weight": 0.5, "reference": "4"}
    rows: list[list[Any]] = [
        [exact, {"verifier": "regex", "reference": r"\d"}],
        [exact, {"verifier": "countdwn", "reference": {}}],
        [exact, {"verifier": "regex", "reference": "("}],
        [exact, {"verifier": "format", "reference": 3}],
        [exact, {"verifier": "weighted", "reference": [exact]}],
        [exact, {"verifier": "both", "reference": {"verifiers": [{"verifier": "both", "reference": {}}]}}],
    ]
    try:
        async with asyncio.timeout(60):
            scored = await scorer.score("weighted", [Item("", "4", {"verifiers": row}) for row in rows])
            nested = await scorer.score("both", [Item("", "4", {"verifiers": rows[0]})] * 200)
    finally:
        await scorer.close()
    assert [s.outcome for s in scored] == [Outcome.SCORED] + [Outcome.REFUSED] * 5
    assert scored[0].verdict is not None
    assert scored[0].verdict.reward == 1.5
    errors = [
        "did you mean 'countdown'?",
        "regex refused",
        "format expects an object",
        "weighted > weighted",
        "weighted > both",
    ]
    for one, text in zip(scored[1:], errors, strict=True):
        assert text in one.error
    assert {s.outcome for s in nested} == {Outcome.SCORED}
