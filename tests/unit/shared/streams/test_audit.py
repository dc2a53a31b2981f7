"""The audit finds what is wrong and nothing else, also on a run that moves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from shared.errors import CorruptDataError
from shared.streams import audit as auditing
from shared.streams.audit import audit
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.runs import GROUP, a_run_of_every_kind, move, prompt


async def test_a_run_of_every_kind_is_well(redis: Redis, run: Run) -> None:
    await a_run_of_every_kind(run)
    found = await audit(redis, run, lambda: {"00000000/0": 7})
    assert found.problems == {}
    assert found.groups == {"in_flight": 3, "ended": 3, "trained": 1, "checkpoints": 1}
    assert found.ledger.stages == {"prompted": GROUP, "generated": GROUP, "scored": GROUP}
    # In the checkpoint, and not yet settled: the learner does that next.
    assert (await audit(redis, run, lambda: {"00000000/0": 7, "00000003/0": 8})).problems == {}


async def _delete_entry(redis: Redis, run: Run) -> None:
    ((entry_id, _),) = await redis.xrange(run.keys(Stream.SCORED))  # type: ignore[misc]
    await redis.xdel(run.keys(Stream.SCORED), entry_id)  # type: ignore[arg-type]


async def _repeat_entry(redis: Redis, run: Run) -> None:
    ((_, fields),) = await redis.xrange(run.keys(Stream.SCORED))  # type: ignore[misc]
    await redis.xadd(run.keys(Stream.SCORED), fields)  # type: ignore[arg-type]


async def _put_entry_back(redis: Redis, run: Run) -> None:
    ((_, fields),) = await redis.xrange(run.keys(Stream.SCORED))  # type: ignore[misc]
    await redis.xadd(run.keys(Stream.ROLLOUTS), fields)  # type: ignore[arg-type]


async def _forget_group(redis: Redis, run: Run) -> None:
    await redis.hdel(run.keys.in_flight, "00000004/0")


async def _miscount(redis: Redis, run: Run) -> None:
    await redis.hincrby(run.keys.ledger, "dropped:stale", 1)


async def _train_again(redis: Redis, run: Run) -> None:
    await redis.xadd(run.keys.ended, {"g": "00000000/0", "n": GROUP, "e": "trained", "s": 9})


async def _forge_ticket(redis: Redis, run: Run) -> None:
    await redis.sadd(run.keys.tickets, "00000000/0")


async def _misweigh(redis: Redis, run: Run) -> None:
    await redis.hincrby(run.keys.bytes, Stream.PROMPTS, 5)


@pytest.mark.parametrize(
    ("breaks", "contained", "problems"),
    [
        (_delete_entry, {"00000000/0": 7}, {"group_without_entry": {"00000003/0"}, "bytes": {"scored"}}),
        (_repeat_entry, {"00000000/0": 7}, {"entry_twice": {"00000003/0"}, "bytes": {"scored"}}),
        (
            _put_entry_back,
            {"00000000/0": 7},
            {"entry_twice": {"00000003/0"}, "entry_not_in_flight": {"00000003/0"}, "bytes": {"rollouts"}},
        ),
        (
            _forget_group,
            {"00000000/0": 7},
            {
                "entry_not_in_flight": {"00000004/0"},
                "ledger_unbalanced": {"prompted"},
                "ticket_without_group": {"00000004/0"},
            },
        ),
        (
            _miscount,
            {"00000000/0": 7},
            {"ledger_unbalanced": {"prompted"}, "ends_not_in_ledger": {"dropped:stale"}},
        ),
        (
            _train_again,
            {"00000000/0": 7},
            {"ended_twice": {"00000000/0"}, "trained_twice": {"00000000/0"}, "ends_not_in_ledger": {"trained"}},
        ),
        (_forge_ticket, {"00000000/0": 7}, {"ticket_without_group": {"00000000/0"}}),
        (_misweigh, {"00000000/0": 7}, {"bytes": {"prompts"}}),
        (None, {}, {"trained_not_in_checkpoints": {"00000000/0"}}),
        (None, {"00000000/0": 8}, {"step_differs": {"00000000/0"}}),
        (None, {"00000000/0": 7, "00000001/0": 7}, {"in_checkpoints_not_trained": {"00000001/0"}}),
        (None, None, {"checkpoints_corrupt": {"lists"}}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_the_audit_names_what_does_not_hold(
    redis: Redis,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Redis, Run], Awaitable[None]] | None,
    contained: dict[str, int] | None,
    problems: dict[str, set[str]],
) -> None:
    monkeypatch.setattr(auditing, "_LOOK_AGAIN_SECONDS", 0.01)
    await a_run_of_every_kind(run)
    if breaks:
        await breaks(redis, run)

    def trained() -> dict[str, int]:
        if contained is None:
            raise CorruptDataError("group 00000000/0 stands twice")
        return contained

    found = await audit(redis, run, trained)
    assert {kind: set(ids) for kind, ids in found.problems.items()} == problems


async def test_the_audit_of_a_run_that_moves_finds_nothing(
    redis: Redis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(auditing, "_ENTRIES_PAGE", 1)
    contained: dict[str, int] = {}

    async def feed() -> None:
        for i in range(1_000_000):
            while await run.admit(i, prompt(i), 12) == "tickets":  # noqa: ASYNC110  # Redis has no event
                await asyncio.sleep(0)

    async def pass_on(source: Stream, destination: Stream) -> None:
        while True:
            await move(run, source, destination, 2)

    async def train() -> None:
        reader = run.consumer(Stream.SCORED)
        while True:
            for entry in await reader.read(3):
                contained[entry.group] = 1
                await reader.end(entry, End.trained(1))

    tasks = [
        asyncio.create_task(work)
        for work in (feed(), pass_on(Stream.PROMPTS, Stream.ROLLOUTS), pass_on(Stream.ROLLOUTS, Stream.SCORED), train())
    ]
    for _ in range(10):
        found = await audit(redis, run, lambda: dict(contained))
        assert found.problems == {}
    assert found.ledger.trained > 20 * GROUP
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
