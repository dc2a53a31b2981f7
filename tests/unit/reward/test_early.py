"""Early scores: what a group finds of them, and what becomes of the rest."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client import REGISTRY

from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb
from services.reward.early import EarlyScores
from services.reward.messages import decode_item, decode_items
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import AsyncVerifier, Item, Parts, Verdict, Verifier, VerifierSettings
from shared.errors import NotFoundError
from tests.support.verifiers import ScriptedSettings, ScriptedVerifier, item


class CountingVerifier(AsyncVerifier):
    """Rewards each item with the number of items before it, once it may."""

    name: ClassVar[str] = "counting"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "counts"

    def __init__(self) -> None:
        super().__init__(VerifierSettings(timeout_seconds=60))
        self.may = asyncio.Event()
        self.judged = 0

    async def verify(self, item: Item, others: Parts) -> Verdict:
        self.judged += 1
        number = self.judged
        await self.may.wait()
        return Verdict(number, {})


@pytest.fixture
def counting() -> CountingVerifier:
    return CountingVerifier()


@pytest.fixture
async def scorer(counting: CountingVerifier) -> AsyncIterator[Scorer]:
    verifiers: dict[str, Verifier | AsyncVerifier] = {
        "scripted": ScriptedVerifier(ScriptedSettings()),
        "counting": counting,
    }
    scorer = Scorer(verifiers, RewardSettings(processes=1, max_queued=8))
    yield scorer
    await scorer.close()


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("routershift_reward_early_scores_total", {"outcome": outcome}) or 0.0


async def test_a_verdict_is_given_out_once_also_among_equal_responses(
    scorer: Scorer, counting: CountingVerifier
) -> None:
    counting.may.set()
    early, used = EarlyScores(scorer, 100), counted("used")
    for _ in range(2):
        await early.score("counting", [item("same")])
    taken = await early.take("counting", [item("same"), item("other"), item("same"), item("same")])
    assert {place: each.verdict and each.verdict.reward for place, each in taken.items()} == {0: 1, 2: 2}
    assert await early.take("counting", [item("same")]) == {}
    assert counted("used") == used + 2
    assert counting.judged == 2


async def test_what_a_cancelled_call_has_begun_is_waited_for(scorer: Scorer, counting: CountingVerifier) -> None:
    early = EarlyScores(scorer, 100)
    call = asyncio.create_task(early.score("counting", [item("a"), item("b")]))
    while counting.judged < 2:  # noqa: ASYNC110  # the loop has to turn a few times, and that is all
        await asyncio.sleep(0)
    call.cancel()
    taking = asyncio.create_task(early.take("counting", [item("b")]))
    await asyncio.sleep(0)
    assert not taking.done()
    counting.may.set()
    taken = await taking
    assert taken[0].verdict == Verdict(2, {})
    assert counting.judged == 2


async def test_no_verdict_is_none_to_take(scorer: Scorer) -> None:
    early, failed = EarlyScores(scorer, 100), counted("failed")
    await early.score("scripted", [item("raise"), item("ok 0.5")])
    with pytest.raises(NotFoundError):
        await early.score("nobody", [item("ok")])
    assert list(await early.take("scripted", [item("raise"), item("ok 0.5")])) == [1]
    assert await early.take("nobody", [item("ok")]) == {}
    assert counted("failed") == failed + 2


async def test_beyond_the_bound_the_oldest_are_forgotten(scorer: Scorer, counting: CountingVerifier) -> None:
    counting.may.set()
    early, forgotten = EarlyScores(scorer, 2), counted("forgotten")
    for response in ("a", "b", "c"):
        await early.score("counting", [item(response)])
    assert list(await early.take("counting", [item("a"), item("b"), item("c")])) == [1, 2]
    assert counted("forgotten") == forgotten + 1


async def test_a_response_is_known_again_in_its_group(scorer: Scorer, tmp_path: Path) -> None:
    early = EarlyScores(scorer, 100)
    prompt = pb.Prompt(text="p", verifier="scripted")
    prompt.reference.update({"b": [1, {"x": None, "a": "é"}], "a": 0.5})
    marks = [pb.SpecialToken(position=2, text="<end>")]
    call = rew.ScoreItem(prompt="p", response="ok 0.5", reference=prompt.reference, special_tokens=marks)
    group = pb.TrajectoryGroup(
        prompt=prompt, trajectories=[pb.Trajectory(completion=pb.Completion(text="ok 0.5", special_tokens=marks))] * 2
    )
    await early.score("scripted", [decode_item(rew.ScoreItem.FromString(call.SerializeToString()))])
    taken = await early.take("scripted", decode_items(pb.TrajectoryGroup.FromString(group.SerializeToString())))
    assert list(taken) == [0]
