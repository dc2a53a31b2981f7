"""What the learner does with the weights that early stop gives to groups, on a real Redis."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.learner.data.batch import Group
from shared.streams.audit import audit
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES, dead_letters, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables


async def test_a_stopped_group_is_dropped_by_its_reason_and_the_rest_is_trained(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    stopped, *whole = [message(g, i) for i, g in enumerate(groups[: GROUPS + 1])]
    del stopped.trajectories[2:]  # whose rewards may differ by now, as by a penalty for length
    stopped.weight = 0.0
    whole[0].weight = 1.5
    await put(run, Stream.SCORED, stopped, *whole)
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert ledger.trained == GROUPS * SAMPLES
    assert ledger.dropped == {"decided": SAMPLES}  # as many as were prompted
    assert ledger.balanced
    assert not (await audit(redis, run, None)).problems


@pytest.mark.parametrize(
    ("weight", "kept", "said"),
    [
        (0.5, SAMPLES, "group.weight is 0.5; expected 0, or 1 to 100"),
        (1e9, SAMPLES, "group.weight is 1000000000.0"),
        (float("nan"), SAMPLES, "group.weight is nan"),
        (2.0, SAMPLES - 1, "3 trajectories; expected 4"),
        (0.0, SAMPLES, "4 trajectories; expected 1 to 3, as it was stopped early"),
    ],
)
async def test_a_weight_that_no_group_has_is_a_dead_letter(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group], weight: float, kept: int, said: str
) -> None:
    wrong, *good = [message(g, i) for i, g in enumerate(groups[: GROUPS + 1])]
    del wrong.trajectories[kept:]
    wrong.weight = weight
    await put(run, Stream.SCORED, wrong, *good)
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    assert (await run.ledger()).dead == {"bad_trajectory": SAMPLES}
    (letter,) = await dead_letters(redis, run)
    assert said in letter.detail
