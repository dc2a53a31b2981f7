"""The loop of environments on a real Redis: where groups go, and what becomes of those that cannot be played.

A double plays, because real episodes do not fail on demand; playing/test_player.py has the player that does.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.environments import metrics
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.worker import EnvironmentsWorker
from shared.errors import (
    CorruptDataError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from shared.settings import StreamSettings
from shared.streams.audit import audit
from shared.streams.consumer import Consumer
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.streams.solve_rates import SolveRate
from tests.support.entries import SAMPLES, dead_letters, until


class Plays:
    """Gives the group, or raises what it is told to first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.played = 0
        self.hold: asyncio.Event | None = None

    async def play(self, prompt: pb.Prompt, *, return_router: bool = True) -> pb.TrajectoryGroup:
        self.played += 1
        if self.hold:
            await self.hold.wait()
        if self.errors:
            raise self.errors.pop(0)
        group = pb.TrajectoryGroup(prompt=prompt)
        for sample in range(SAMPLES):
            made = group.trajectories.add(id=pb.TrajectoryId(sample=sample))
            made.segments.add(role=pb.ROLE_ASSISTANT, tokens=3, sampled=True)
            made.segments.add(role=pb.ROLE_TOOL, tokens=2)
            made.segments.add(role=pb.ROLE_ASSISTANT, tokens=1, sampled=True)
            made.completion.finish_reason = pb.FINISH_REASON_STOP if sample else pb.FINISH_REASON_LENGTH
            if not prompt.verifier:
                made.score.CopyFrom(pb.Score(outcome=pb.OUTCOME_SCORED, reward=float(sample == 0)))
        return group


async def serving() -> None:
    """Generation serves."""


async def admitted(run: Run, verifier: str = "", environment: str = "maze") -> None:
    index = await run.next_prompt()
    prompt = pb.Prompt(prompt_id=f"{index:08d}", problem_id="row", environment=environment, verifier=verifier)
    prompt.sampling.n = SAMPLES
    assert await run.admit(index, prompt, 10) == "ok"


async def never() -> None:
    """Generation answers for as long as anybody asks."""
    await asyncio.Event().wait()


def worker(
    run: Run,
    reader: Consumer,
    plays: Plays,
    wait: Callable[[], Awaitable[object]] = serving,
    away: Callable[[], Awaitable[object]] = never,
) -> EnvironmentsWorker:
    return EnvironmentsWorker(reader, plays, wait, away, 2, run.solve_rates)


async def handle_one(run: Run, plays: Plays) -> None:
    reader = run.consumer(Stream.EPISODES)
    (entry,) = await reader.read(1)
    await worker(run, reader, plays).handle(entry)
    assert not reader.held


@pytest.mark.parametrize(("verifier", "stream"), [("", Stream.SCORED), ("countdown", Stream.ROLLOUTS)])
async def test_groups_go_to_reward_or_past_it(redis: Redis, run: Run, verifier: str, stream: Stream) -> None:
    await run.solve_rates.open(10)
    await admitted(run, verifier)
    turns, given = (m.labels("maze")._value.get() for m in (metrics.TURNS, metrics.GIVEN))
    await handle_one(run, Plays())
    (entry,) = await run.consumer(stream).read(2)
    assert len(pb.TrajectoryGroup.FromString(entry.payload).trajectories) == SAMPLES
    assert metrics.TURNS.labels("maze")._value.get() == turns + 2 * SAMPLES
    assert metrics.GIVEN.labels("maze")._value.get() == given + 2 * SAMPLES
    rate = None if verifier else SolveRate(1, 1 / SAMPLES, equal=False)  # reward records what it judges
    assert await run.solve_rates.read(["row"]) == [rate]
    assert (await audit(redis, run, None)).problems == {}


@pytest.mark.parametrize("error", [InvalidInputError("bad task"), NotFoundError("no maze"), CorruptDataError("torn")])
async def test_a_prompt_that_cannot_be_played_goes_to_the_dead_letters_and_comes_back(
    redis: Redis, run: Run, error: Exception
) -> None:
    await admitted(run)
    plays = Plays(error)
    await handle_one(run, plays)
    (letter,) = await dead_letters(redis, run)
    assert (letter.reason, letter.detail, letter.stream) == ("bad_prompt", str(error), "episodes")
    assert plays.played == 1
    await run.dead.replay((await run.dead.ids())[0])
    await handle_one(run, plays)
    assert len(await run.consumer(Stream.SCORED).read(2)) == 1
    assert (await run.ledger()).balanced


@pytest.mark.parametrize("reason", Reason)
async def test_a_group_that_fails_is_played_anew_and_dropped_at_last(run: Run, reason: Reason) -> None:
    error = EpisodeFailedError("it rains", reason)
    await admitted(run)
    await handle_one(run, Plays(error))  # and then it does not
    assert len(await run.consumer(Stream.SCORED).read(2)) == 1
    await admitted(run)
    before = metrics.DROPPED.labels(reason)._value.get()
    await handle_one(run, Plays(error, error))
    ledger = await run.ledger()
    assert ledger.dropped == {reason: SAMPLES}
    assert ledger.balanced
    assert metrics.DROPPED.labels(reason)._value.get() == before + SAMPLES


async def test_a_generation_that_is_away_is_no_failure_of_the_group(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.environments.worker._PAUSE_SECONDS", 0.01)
    await admitted(run)
    away = [UnavailableError("gone"), DeadlineError("slow"), OverloadedError("full"), UnavailableError("gone")]
    await handle_one(run, Plays(*away))
    assert len(await run.consumer(Stream.SCORED).read(2)) == 1


async def test_a_group_whose_player_dies_is_played_anew_by_another_and_handed_over_once(
    redis: Redis, run: Run, stream_settings: StreamSettings
) -> None:
    await admitted(run)
    first, plays = run.consumer(Stream.EPISODES), Plays()
    plays.hold = asyncio.Event()
    (entry,) = await first.read(1)
    slow = asyncio.create_task(worker(run, first, plays).handle(entry))  # holds it, and does not beat
    other = Consumer(redis, run.keys, Stream.EPISODES, stream_settings.model_copy(update={"consumer": "other"}))
    taken = []

    async def is_taken() -> bool:
        taken.extend(await other.read(1))
        return bool(taken)

    await until(is_taken)
    assert taken[0].deliveries == 2
    await worker(run, other, Plays()).handle(taken[0])
    plays.hold.set()
    await slow
    assert len(await run.consumer(Stream.SCORED).read(5)) == 1
    assert (await audit(redis, run, None)).problems == {}


async def test_a_beating_reader_keeps_a_long_episode(redis: Redis, run: Run, stream_settings: StreamSettings) -> None:
    await admitted(run)
    reader, plays = run.consumer(Stream.EPISODES), Plays()
    plays.hold = asyncio.Event()
    (entry,) = await reader.read(1)
    playing, beating = asyncio.create_task(worker(run, reader, plays).handle(entry)), asyncio.create_task(reader.beat())
    other = Consumer(redis, run.keys, Stream.EPISODES, stream_settings.model_copy(update={"consumer": "other"}))
    for _ in range(6):  # of 0.05 s at least: longer than an entry may be idle
        assert await other.read(1) == []
    plays.hold.set()
    await playing
    beating.cancel()
    assert len(await run.consumer(Stream.SCORED).read(5)) == 1


@pytest.mark.parametrize("case", ["they end", "time is up", "generation ends first"])
async def test_a_stop_waits_for_episodes_and_not_for_ever(redis: Redis, run: Run, case: str) -> None:
    await admitted(run)
    ends, away = case == "they end", never if case != "generation ends first" else serving
    reader, plays, stop = run.consumer(Stream.EPISODES), Plays(), asyncio.Event()
    plays.hold = asyncio.Event()
    drain_seconds = 0.1 if case == "time is up" else 3600.0
    running = asyncio.create_task(worker(run, reader, plays, away=away).run(2, stop, drain_seconds))

    async def is_playing() -> bool:
        return plays.played == 1

    await until(is_playing)
    stop.set()
    if ends:
        plays.hold.set()
    await asyncio.wait_for(running, 20)
    assert len(await run.consumer(Stream.SCORED).read(2)) == int(ends)
    assert (await run.backlog())[Stream.EPISODES].entries == int(not ends)  # it is delivered again
    assert (await audit(redis, run, None)).problems == {}


async def test_an_error_that_nobody_expects_ends_the_loop(run: Run) -> None:
    await admitted(run)
    playing = worker(run, run.consumer(Stream.EPISODES), Plays(ZeroDivisionError("a fault of ours")))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(playing.run(2, asyncio.Event(), 1.0), 20)
    assert caught.group_contains(ZeroDivisionError)
