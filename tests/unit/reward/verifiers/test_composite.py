"""The verifier `composite`: a weighted sum of others, with gates."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, Verdict
from services.reward.verifiers.composite import CompositeSettings, CompositeVerifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError
from tests.support.judges import ITEM, Fixed


def composite(parts: Mapping[str, Any], **settings: Any) -> CompositeVerifier:
    return CompositeVerifier(CompositeSettings.model_validate({"parts": parts, **settings}))


RIGHT = Verdict(1.0, {"correct": 1.0, "valid": 1.0})
FORMLESS = Verdict(-0.5, {"correct": 0.0, "valid": 0.0, "length": -0.5})


async def test_a_weighted_sum_keeps_the_values_of_its_parts() -> None:
    verifier = composite({"answer": {"verifier": "a", "weight": 2}, "form": {"verifier": "f", "weight": 0.5}})
    verdict = await verifier.verify(ITEM, Fixed(a=RIGHT, f=FORMLESS))
    assert verdict.reward == 2 * 1.0 + 0.5 * -0.5
    assert verdict.parts == {
        "answer.reward": 1.0,
        "answer.correct": 1.0,
        "answer.valid": 1.0,
        "form.reward": -0.5,
        "form.correct": 0.0,
        "form.valid": 0.0,
        "form.length": -0.5,
        "correct": 1.0,
        "valid": 0.0,
    }


@pytest.mark.parametrize(("gate", "reward"), [(-0.5, 0.5), (0.0, -1.0)])
async def test_a_closed_gate_takes_the_whole_reward(gate: float, reward: float) -> None:
    verifier = composite({"answer": {"verifier": "a"}, "form": {"verifier": "f", "gate": gate}}, closed_reward=-1)
    verdict = await verifier.verify(ITEM, Fixed(a=RIGHT, f=FORMLESS))
    assert verdict.reward == reward
    assert verdict.parts["correct"] == 1.0


async def test_the_settings_say_whose_correctness_counts() -> None:
    parts = {"answer": {"verifier": "a"}, "form": {"verifier": "f"}}
    assert (await composite(parts, correct="form").verify(ITEM, Fixed(a=RIGHT, f=FORMLESS))).parts["correct"] == 0.0
    with pytest.raises(ValidationError, match="expected one of the parts answer, form"):
        composite(parts, correct="other")


async def test_a_part_can_have_a_reference_of_its_own() -> None:
    verifier = composite({"answer": {"verifier": "a", "reference": "math"}, "form": {"verifier": "f"}})
    others = Fixed(a=RIGHT, f=RIGHT)
    item = Item("", "4", {"math": {"answer": "4"}})
    await verifier.verify(item, others)
    assert {name: asked.reference for name, asked in others.asked} == {"a": {"answer": "4"}, "f": item.reference}
    with pytest.raises(InvalidInputError, match="no table 'math' for part 'answer'"):
        await verifier.verify(ITEM, others)


async def test_where_a_part_has_no_verdict_the_whole_has_none() -> None:
    verifier = composite({"answer": {"verifier": "a"}, "form": {"verifier": "f"}})
    with pytest.raises(InvalidInputError, match="unusable"):
        await verifier.verify(ITEM, Fixed(a=RIGHT, f=InvalidInputError("unusable")))


async def test_composites_run_in_the_scorer() -> None:
    tables: dict[str, dict[str, Any]] = {
        "both": {
            "kind": "composite",
            "parts": {"answer": {"verifier": "exact"}, "form": {"verifier": "regex", "reference": "form"}},
        }
    }
    scorer = Scorer(make_verifiers(tables), RewardSettings(processes=1))
    items = [Item("", "4", {"answer": "4", "form": {"pattern": pattern}}) for pattern in (r"\d", "(")]
    try:
        right, refused = await scorer.score("both", items)
    finally:
        await scorer.close()
    assert right.verdict is not None
    assert right.verdict.reward == 2.0
    assert right.verdict.parts["form.correct"] == 1.0
    assert refused.outcome is Outcome.REFUSED
