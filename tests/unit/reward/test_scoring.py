"""Scorer: names, the bound on queued work, deadlines of verifiers that ask others, and what is counted."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from prometheus_client import REGISTRY

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer, UnscoredError
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import AsyncVerifier, Item, Parts, Verdict, Verifier, VerifierSettings
from shared.errors import InvalidInputError, NotFoundError, OverloadedError, PreconditionError
from tests.support.verifiers import AskingVerifier, ScriptedSettings, ScriptedVerifier, item


class WaitingVerifier(AsyncVerifier):
    """Waits by itself for as long as the response says, after the other verifier did."""

    name: ClassVar[str] = "waiting"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "waits"

    async def verify(self, item: Item, others: Parts) -> Verdict:
        await asyncio.gather(*(others.verdicts("scripted", [Item("", "sleep 0.3", {})]) for _ in range(4)))
        await asyncio.sleep(float(item.response))
        return Verdict(1.0, {})


@pytest.fixture
async def scorer() -> AsyncIterator[Scorer]:
    verifiers: dict[str, Verifier | AsyncVerifier] = {
        "scripted": ScriptedVerifier(ScriptedSettings()),
        "broken": ScriptedVerifier(ScriptedSettings(starts="refused")),
        "asking": AskingVerifier(VerifierSettings()),
        "waiting": WaitingVerifier(VerifierSettings(timeout_seconds=0.5)),
    }
    scorer = Scorer(verifiers, RewardSettings(max_queued=8, timeout_seconds=5))
    yield scorer
    await scorer.close()


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_an_unknown_verifier_is_not_found(scorer: Scorer) -> None:
    with pytest.raises(NotFoundError, match="verifier is 'nope'; known: scripted, broken"):
        await scorer.score("nope", [item("ok")])


async def test_more_than_max_queued_is_refused_and_room_comes_back(scorer: Scorer) -> None:
    with pytest.raises(InvalidInputError, match=r"9 items at once; reward\.max_queued = 8"):
        await scorer.score("scripted", [item("ok")] * 9)
    first = asyncio.create_task(scorer.score("scripted", [item("sleep 0.3")] * 6))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match=r"6 items are queued and 3 more exceed reward\.max_queued = 8"):
        await scorer.score("scripted", [item("ok")] * 3)
    assert sample("routershift_reward_queued_items") == 6
    await scorer.score("scripted", [item("ok")] * 2)
    await first
    assert len(await scorer.score("scripted", [item("ok")] * 8)) == 8
    assert sample("routershift_reward_queued_items") == 0


async def test_the_parts_of_an_item_do_not_count_again(scorer: Scorer) -> None:
    scored = await scorer.score("asking", [item("ok 0.5")] * 8)
    assert [s.verdict.reward for s in scored if s.verdict] == [0.25] * 8
    assert {(s.verifier, s.version) for s in scored} == {("asking", "3")}


async def test_a_part_without_a_verdict_is_the_outcome_of_the_whole(scorer: Scorer) -> None:
    scored = await scorer.score("asking", [item("refuse"), item("raise"), item("ok")])
    assert [s.outcome for s in scored] == [Outcome.REFUSED, Outcome.FAILED, Outcome.SCORED]
    assert scored[0].error == "scripted refused: no such reference"
    with pytest.raises(UnscoredError, match="scripted failed: RuntimeError: it broke"):
        await scorer.verdicts("scripted", [item("ok"), item("raise")])


async def test_the_time_of_others_is_not_ones_own(scorer: Scorer) -> None:
    """Its four parts take 0.6 s on two workers; its own deadline is 0.5 s."""
    scored = await scorer.score("waiting", [item("0"), item("3")])
    assert [s.outcome for s in scored] == [Outcome.SCORED, Outcome.TIMED_OUT]
    assert scored[1].error == "none within 0.5 s"


async def test_a_verifier_that_cannot_judge_here_says_so_each_time(scorer: Scorer) -> None:
    with pytest.raises(PreconditionError, match="not on this machine"):
        await scorer.start(["scripted", "broken"])
    with pytest.raises(PreconditionError, match="not on this machine"):
        await scorer.score("broken", [item("ok")])
    assert (await scorer.score("scripted", [item("ok")]))[0].outcome == Outcome.SCORED


async def test_what_is_counted(scorer: Scorer) -> None:
    names = {o: ("routershift_reward_scores_total", {"verifier": "scripted", "outcome": o}) for o in Outcome}
    before = {o: sample(name, **labels) for o, (name, labels) in names.items()}
    low, high = (sample("routershift_reward_value_bucket", verifier="scripted", le=le) for le in ("0.25", "+Inf"))
    lost = sample("routershift_reward_workers_lost_total", verifier="scripted")
    await scorer.score("scripted", [item(r) for r in ("ok 0.2", "ok 0.3", "raise", "refuse", "exit 1")])
    after = {o: sample(name, **labels) - before[o] for o, (name, labels) in names.items()}
    assert after == {Outcome.SCORED: 2, Outcome.FAILED: 2, Outcome.REFUSED: 1, Outcome.TIMED_OUT: 0}
    assert sample("routershift_reward_value_bucket", verifier="scripted", le="0.25") == low + 1
    assert sample("routershift_reward_value_bucket", verifier="scripted", le="+Inf") == high + 2
    assert sample("routershift_reward_workers_lost_total", verifier="scripted") == lost + 1
