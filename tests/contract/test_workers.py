"""The stream loops on a real Redis: what each service does with good entries, bad ones, and the end of a run."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.learner import checkpoint
from services.learner.settings import LearnerSettings
from services.learner.settings import Settings as LearnerTables
from services.learner.trainer import Group, Trainer
from services.learner.worker import LearnerWorker
from services.reward.scoring import Scorer
from services.reward.verifiers import VERIFIERS
from services.reward.verifiers.base import Verdict
from services.reward.worker import RewardWorker
from shared import records, weights, wire
from shared.settings import RunSettings
from shared.streams.keys import Stream
from shared.streams.run import FINISHED, PAUSED, Run
from tests.models import save_model
from tests.rollouts import load, random_groups

SAMPLES = 4
GROUPS = 2  # a step


def message(group: Group, index: int) -> pb.TrajectoryGroup:
    """A group as the reward service hands it over."""
    prompt = pb.Prompt(
        prompt_id=f"{index:08d}",
        token_ids=group.samples[0].prompt_ids.tolist(),
        verifier="countdown",
        sampling=pb.SamplingParams(n=SAMPLES),
    )
    trajectories = [
        pb.Trajectory(
            id=pb.TrajectoryId(prompt_id=prompt.prompt_id, sample=i),
            completion=wire.encode_completion(sample.completion),
            score=pb.Score(outcome=pb.OUTCOME_SCORED, reward=sample.reward, parts={"correct": sample.reward}),
        )
        for i, sample in enumerate(group.samples)
    ]
    made = pb.TrajectoryGroup(prompt=prompt, trajectories=trajectories)
    made.generated_at.GetCurrentTime()
    return made


async def put(run: Run, destination: Stream, *messages: pb.TrajectoryGroup) -> None:
    """Brings groups onto a stream by the way that they go in a run."""
    for made in messages:
        index = await run.next_prompt()
        made.prompt.prompt_id = f"{index:08d}"
        assert await run.admit(index, made.prompt, tickets=1000) == "ok"
        for source, next_stream in ((Stream.PROMPTS, Stream.ROLLOUTS), (Stream.ROLLOUTS, Stream.SCORED)):
            reader = run.consumer(source)
            (entry,) = await reader.read(1)
            await reader.hand_over(entry, next_stream, made)
            if next_stream == destination:
                break


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(0.05)


async def dead_letters(redis: Redis, run: Run) -> list[pb.DeadLetter]:
    entries: Any = await redis.xrange(run.keys.dead)
    return [pb.DeadLetter.FromString(fields[b"p"]) for _, fields in entries]


# Reward


class Flaky:
    """Fails as often as it is told to, then judges."""

    name: ClassVar[str] = "flaky"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a verifier with a fault"

    def __init__(self, failures: int) -> None:
        self.left = failures

    def verify(self, prompt: str, response: str, reference: Mapping[str, Any]) -> Verdict:
        if self.left:
            self.left -= 1
            raise RuntimeError("the verifier broke")
        return Verdict(1.0, {"correct": 1.0})


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    scorer = Scorer(timeout_seconds=5)
    yield scorer
    scorer.close()


def rollouts(verifier: str) -> pb.TrajectoryGroup:
    prompt = pb.Prompt(prompt_id="0", verifier=verifier, sampling=pb.SamplingParams(n=SAMPLES))
    return pb.TrajectoryGroup(prompt=prompt, trajectories=[pb.Trajectory() for _ in range(SAMPLES)])


async def score_one(run: Run, scorer: Scorer, group: pb.TrajectoryGroup) -> None:
    await put(run, Stream.ROLLOUTS, group)
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    await RewardWorker(reader, scorer, attempts=2).handle(entry)


async def test_a_verifier_that_recovers_scores_everything(
    run: Run, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFIERS, "flaky", Flaky(failures=1))
    await score_one(run, scorer, rollouts("flaky"))
    (entry,) = await run.consumer(Stream.SCORED).read(1)
    scored = pb.TrajectoryGroup.FromString(entry.payload)
    assert [t.score.reward for t in scored.trajectories] == [1.0] * SAMPLES


async def test_a_verifier_that_fails_for_good_drops_the_group_and_gives_no_reward(
    run: Run, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFIERS, "flaky", Flaky(failures=1000))
    await score_one(run, scorer, rollouts("flaky"))
    assert (await run.backlog())[Stream.SCORED].entries == 0
    ledger = await run.ledger()
    assert ledger.dropped == {"verifier_failed": SAMPLES}
    assert ledger.balanced


async def test_a_verifier_that_hangs_times_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Flaky):
        def verify(self, prompt: str, response: str, reference: Mapping[str, Any]) -> Verdict:
            import time

            time.sleep(0.5)
            return Verdict(1.0, {})

    monkeypatch.setitem(VERIFIERS, "flaky", Slow(0))
    await score_one(run, Scorer(timeout_seconds=0.05), rollouts("flaky"))
    assert (await run.ledger()).dropped == {"verifier_timed_out": SAMPLES}


async def test_an_unknown_verifier_is_a_dead_letter(redis: Redis, run: Run, scorer: Scorer) -> None:
    await score_one(run, scorer, rollouts("nope"))
    (letter,) = await dead_letters(redis, run)
    assert letter.reason == "bad_group"
    assert "verifier is 'nope'" in letter.detail
    assert (await run.ledger()).balanced


# Learner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(load(model), groups=12, samples=SAMPLES)


def tables(folder: Path, model: Path, steps: int = 2, **learner: Any) -> LearnerTables:
    settings = {"checkpoint_every": 1, **learner}
    return LearnerTables(
        run=RunSettings(
            id="learn",
            folder=folder,
            model=model,
            steps=steps,
            groups_per_step=GROUPS,
            samples_per_group=SAMPLES,
            max_staleness=1,
        ),
        learner=LearnerSettings(**settings),
    )


class Learning:
    """A learner's loop as a task."""

    def __init__(self, settings: LearnerTables, run: Run) -> None:
        self.trainer = Trainer(settings.learner, settings.run.model, seed=0)
        contained = checkpoint.load_latest(settings.run.path / "checkpoints", self.trainer)
        self.consumer = run.consumer(Stream.SCORED)
        self.worker = LearnerWorker(settings, self.trainer, run, self.consumer, contained)
        self.stop = asyncio.Event()

    async def __aenter__(self) -> "Learning":
        self._task = asyncio.create_task(self.worker.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait_for(self._task, 30)


async def nothing_in_flight(run: Run) -> bool:
    return (await run.ledger()).in_flight == 0


async def test_it_trains_publishes_and_acknowledges_what_is_durable(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
        assert learning.worker.status().phase == FINISHED
    ledger = await run.ledger()
    assert (ledger.trained, ledger.balanced) == (2 * GROUPS * SAMPLES, True)
    newest = await run.newest_weights()
    assert newest is not None
    assert newest.version == 2
    (path,) = weights.verify(settings.run.weights_root, newest)
    assert path.name == "model.safetensors"
    assert (await run.progress())["phase"] == FINISHED
    assert [r["step"] for r in records.read(settings.run.path / records.LEARNER)] == [1, 2]


async def test_what_cannot_be_trained_on_leaves_with_its_reason(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    good = [message(g, i) for i, g in enumerate(groups[:GROUPS])]
    flat = message(groups[2], 2)
    for trajectory in flat.trajectories:
        trajectory.score.reward = 0.1
    unscored = message(groups[3], 3)
    unscored.trajectories[1].score.outcome = pb.OUTCOME_FAILED
    short = message(groups[4], 4)
    del short.trajectories[0]
    foreign = message(groups[5], 5)
    foreign.trajectories[0].completion.router_trace.layout.layer_ids[0] = 7
    torn = message(groups[6], 6)
    torn.trajectories[2].completion.router_trace.crc32 ^= 1
    late = message(groups[7], 7)
    await put(run, Stream.SCORED, flat, unscored, short, foreign, torn, *good, late)
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert ledger.trained == GROUPS * SAMPLES
    assert ledger.dropped == {"run_finished": SAMPLES, "zero_variance": SAMPLES}
    assert ledger.dead == {"bad_trajectory": 4 * SAMPLES}
    assert ledger.balanced
    details = " ".join(letter.detail for letter in await dead_letters(redis, run))
    for text in ("OUTCOME_FAILED", "3 trajectories; expected 4", "layer_ids", "router_trace.crc32"):
        assert text in details


async def test_stale_groups_are_dropped_and_counted(run: Run, tmp_path: Path, model: Path, groups: list[Group]) -> None:
    settings = tables(tmp_path, model, steps=3)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 3 * GROUPS])))
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))
        # Two steps fit into max_staleness = 1; what is left is of version 0 at step 2.
        assert learning.trainer.step == 2
    assert (await run.ledger()).dropped == {"stale": GROUPS * SAMPLES}
    assert await run.tickets_held() == 0


async def test_a_crash_before_the_checkpoint_trains_again_on_the_same_groups(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=2, checkpoint_every=2)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 2 * GROUPS])))
    crashed = Learning(settings, run)
    task = asyncio.create_task(crashed.worker.run(crashed.stop))
    records_file = settings.run.path / records.LEARNER

    async def one_step_done() -> bool:
        return len(records.read(records_file)) >= 1

    await until(one_step_done)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await run.ledger()).trained == 0
    async with Learning(settings, run) as resumed:
        await until(lambda: nothing_in_flight(run))
        assert resumed.trainer.step == 2
    ledger = await run.ledger()
    assert (ledger.trained, ledger.dropped, ledger.balanced) == (2 * GROUPS * SAMPLES, {}, True)


async def test_a_crash_after_the_checkpoint_settles_without_training_again(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tables(tmp_path, model, steps=1)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    crashed = Learning(settings, run)

    async def die(*_: object) -> bool:
        raise ConnectionError("killed between checkpoint and acknowledgement")

    monkeypatch.setattr(crashed.consumer, "end", die)
    with pytest.raises(ConnectionError):
        await crashed.worker.run(crashed.stop)
    async with Learning(settings, run) as resumed:
        assert resumed.trainer.step == 1
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert (ledger.trained, ledger.dropped) == (GROUPS * SAMPLES, {})
    assert len(records.read(settings.run.path / records.LEARNER)) == 0


async def test_pause_checkpoint_and_resume(run: Run, tmp_path: Path, model: Path, groups: list[Group]) -> None:
    settings = tables(tmp_path, model, steps=1, checkpoint_every=100)
    async with Learning(settings, run) as learning:
        assert await learning.worker.pause() == 0
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
        path = await asyncio.wait_for(learning.worker.checkpoint_now(), 10)
        assert checkpoint.latest(settings.run.path / "checkpoints") == path
        assert (await run.progress())["phase"] == PAUSED
        assert learning.trainer.step == 0
        await learning.worker.resume()
        await until(lambda: nothing_in_flight(run))
        assert learning.trainer.step == 1


async def test_a_payload_of_noise_is_a_dead_letter(redis: Redis, run: Run, tmp_path: Path, model: Path) -> None:
    noise = np.random.default_rng(0).bytes(64)
    await redis.xadd(run.keys(Stream.SCORED), {"g": "noise/0", "n": SAMPLES, "p": noise})
    async with Learning(tables(tmp_path, model), run):

        async def buried() -> bool:
            return await run.dead_letters() == 1

        await until(buried)
    (letter,) = await dead_letters(redis, run)
    assert (letter.payload, letter.reason) == (noise, "bad_trajectory")
