"""The reward service's loop on a real Redis: what it does with good entries and with verifiers that fail."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from redis.asyncio import Redis

from routershift import wire
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb
from services.reward.early import EarlyScores
from services.reward.messages import decode_item
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings, UnscoredSettings
from services.reward.unscored import UnscoredSamples
from services.reward.verifiers.registry import make_verifiers
from services.reward.worker import RewardWorker
from shared.errors import UnavailableError
from shared.streams.consumer import parse_group
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.streams.solve_rates import SolveRate
from shared.tracking.samples import Samples
from tests.support.entries import SAMPLES, dead_letters, put, until
from tests.support.verifiers import ScriptedSettings, ScriptedVerifier, item


@pytest.fixture
async def scorer() -> AsyncIterator[Scorer]:
    scorer = Scorer({"scripted": ScriptedVerifier(ScriptedSettings(timeout_seconds=1))}, RewardSettings(max_queued=8))
    yield scorer
    await scorer.close()


async def score_one(
    run: Run,
    scorer: Scorer,
    response: str,
    verifier: str = "scripted",
    problem_id: str = "",
    unscored: UnscoredSamples | None = None,
    version: int = 0,
) -> None:
    """A group whose last response is this one; the others are good. Each has two tokens of a version."""
    prompt = pb.Prompt(prompt_id="0", problem_id=problem_id, verifier=verifier, sampling=pb.SamplingParams(n=SAMPLES))
    texts = [*["ok 0.5"] * (SAMPLES - 1), response]
    trajectories = [
        pb.Trajectory(
            id=pb.TrajectoryId(sample=i),
            completion=pb.Completion(
                text=text,
                token_ids=wire.encode_tensor(np.array([3, 4], dtype=np.int32)),
                logprobs=wire.encode_tensor(np.array([-1, -2], dtype=np.float32)),
                versions=[pb.VersionSpan(version=version, tokens=2)],
            ),
        )
        for i, text in enumerate(texts)
    ]
    await put(run, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=prompt, trajectories=trajectories))
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    await RewardWorker(reader, scorer, EarlyScores(scorer, 100), 2, run.solve_rates, unscored).handle(entry)


async def test_a_verifier_that_recovers_scores_everything(run: Run, scorer: Scorer, tmp_path: Path) -> None:
    await score_one(run, scorer, f"once {tmp_path / 'fault'}")
    (entry,) = await run.consumer(Stream.SCORED).read(1)
    scores = [t.score for t in parse_group(entry).trajectories]
    assert [s.reward for s in scores] == [0.5] * (SAMPLES - 1) + [1.0]
    assert {(s.outcome, s.verifier, s.verifier_version) for s in scores} == {(pb.OUTCOME_SCORED, "scripted", "7")}
    assert all(s.parts["pid"] and s.seconds and not s.error for s in scores)


@pytest.mark.parametrize(
    ("response", "reason"),
    [("raise", "verifier_failed"), ("kill 11", "verifier_failed"), ("sleep 60", "verifier_timed_out")],
)
async def test_a_sample_without_a_verdict_drops_the_group_and_gives_no_reward(
    run: Run, scorer: Scorer, response: str, reason: str
) -> None:
    await score_one(run, scorer, response)
    assert (await run.backlog())[Stream.SCORED].entries == 0
    ledger = await run.ledger()
    assert ledger.dropped == {reason: SAMPLES}
    assert ledger.balanced


async def test_a_group_without_a_verdict_is_kept_with_what_the_verifier_said(
    run: Run, scorer: Scorer, tmp_path: Path
) -> None:
    unscored = UnscoredSamples(tmp_path, "one", UnscoredSettings(groups=2))
    for version in (4, 4, 4, 5):
        await score_one(run, scorer, "raise", problem_id="row-1", unscored=unscored, version=version)
    reader = Samples(tmp_path)
    found = reader.summaries()
    assert [(s.step, s.outcome, s.problem) for s in found] == [
        *[(5, "verifier_failed", "row-1")] * 2 * SAMPLES,
        *[(6, "verifier_failed", "row-1")] * SAMPLES,
    ]
    group = found[0].group
    samples = [reader.read(5, f"{group}/{i}") for i in range(SAMPLES)]
    assert [s.reward for s in samples] == [*[0.5] * (SAMPLES - 1), None]
    assert [s.response for s in samples] == [*["ok 0.5"] * (SAMPLES - 1), "raise"]
    assert "RuntimeError" in samples[-1].message
    assert [s.message for s in samples[:-1]] == [""] * (SAMPLES - 1)
    assert samples[-1].tokens.versions.tolist() == [4, 4]


async def test_a_disk_that_takes_no_samples_changes_nothing_for_the_group(
    run: Run, scorer: Scorer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "unscored").touch()
    unscored = UnscoredSamples(tmp_path, "one", UnscoredSettings())
    for version in (4, 5):
        await score_one(run, scorer, "raise", unscored=unscored, version=version)
    assert (await run.ledger()).dropped == {"verifier_failed": 2 * SAMPLES}
    assert sum("not kept" in line for line in caplog.messages) == 1


async def test_no_sample_without_a_verdict_is_a_choice(run: Run, scorer: Scorer, tmp_path: Path) -> None:
    await score_one(
        run, scorer, "raise", unscored=UnscoredSamples(tmp_path, "one", UnscoredSettings(groups=0)), version=1
    )
    assert not (tmp_path / "unscored").exists()


async def test_workers_that_are_killed_cost_groups_a_retry_or_a_reason_and_never_a_reward(
    run: Run, scorer: Scorer
) -> None:
    """Killed from outside, at any moment, as the kernel does where memory runs out."""
    groups = 12
    prompt = pb.Prompt(verifier="scripted", sampling=pb.SamplingParams(n=SAMPLES))
    trajectories = [pb.Trajectory(completion=pb.Completion(text="sleep 0.02")) for _ in range(SAMPLES)]
    for _ in range(groups):
        await put(run, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=prompt, trajectories=trajectories))
    reader, stop = run.consumer(Stream.ROLLOUTS), asyncio.Event()
    worker = RewardWorker(reader, scorer, EarlyScores(scorer, 100), 2, run.solve_rates)
    scoring = asyncio.create_task(reader.each(worker.handle, lambda: 2 - reader.held, stop))
    moments = random.Random(0)
    left = groups

    async def goes_on() -> bool:
        nonlocal left
        assert not scoring.done(), scoring.result()
        before, left = left, (await run.backlog())[Stream.ROLLOUTS].entries
        return left < before or left == 0

    async def oldest_is_killed() -> bool:
        """It judges; younger ones may not have begun."""
        for process in sorted(psutil.Process().children(), key=psutil.Process.create_time):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] == ["routershift verifier scripted"]:
                    process.kill()
                    return True
        return False

    async def done() -> bool:
        return await goes_on() and left == 0

    for _ in range(4):
        await until(goes_on)
        await asyncio.sleep(moments.uniform(0, 0.1))
        await until(oldest_is_killed)
    await until(done)
    stop.set()
    await asyncio.wait_for(scoring, 30)
    entries = await run.consumer(Stream.SCORED).read(groups)
    ledger = await run.ledger()
    assert ledger.balanced
    assert ledger.dropped.keys() <= {"verifier_failed"}
    assert len(entries) == groups - sum(ledger.dropped.values()) // SAMPLES
    for entry in entries:
        scores = [t.score for t in parse_group(entry).trajectories]
        assert {(s.outcome, s.reward) for s in scores} == {(pb.OUTCOME_SCORED, 1.0)}


async def test_a_verifier_that_does_not_start_leaves_its_group_to_the_restarted_service(run: Run) -> None:
    """What the recipe names is started before the first group; of the rest nobody knows whether it is to blame."""
    broken = Scorer({"scripted": ScriptedVerifier(ScriptedSettings(starts="killed"))}, RewardSettings())
    with pytest.raises(UnavailableError, match=r"verifier scripted does not start: .*SIGKILL"):
        await score_one(run, broken, "ok")
    await broken.close()
    assert (await run.backlog())[Stream.ROLLOUTS].entries == 1
    ledger = await run.ledger()
    assert (ledger.in_flight, ledger.balanced) == (SAMPLES, True)


async def test_a_refused_sample_is_not_tried_again(run: Run, scorer: Scorer) -> None:
    asked = 0
    score = scorer.score

    async def count(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return await score(*arguments)  # type: ignore[arg-type]

    scorer.score = count  # type: ignore[assignment, method-assign]
    await score_one(run, scorer, "refuse")
    assert asked == 1
    assert (await run.ledger()).dropped == {"verifier_refused": SAMPLES}


async def test_a_group_waits_for_room_among_direct_calls(run: Run, scorer: Scorer) -> None:
    direct = asyncio.create_task(scorer.score("scripted", [item("sleep 0.1")] * 8))
    await asyncio.sleep(0)
    await score_one(run, scorer, "ok")
    assert len(await direct) == 8
    assert (await run.backlog())[Stream.SCORED].entries == 1


async def test_an_unknown_verifier_is_a_dead_letter(redis: Redis, run: Run, scorer: Scorer) -> None:
    await score_one(run, scorer, "ok", verifier="nope")
    (letter,) = await dead_letters(redis, run)
    assert letter.reason == "bad_group"
    assert "verifier is 'nope'" in letter.detail
    assert (await run.ledger()).balanced


async def test_a_judged_group_moves_the_solve_rate_of_its_problem(run: Run, scorer: Scorer) -> None:
    """The scripted verifier names no right answers, so the mean reward counts. A group without a verdict does not."""
    await run.solve_rates.open(10)
    await score_one(run, scorer, "ok 1", problem_id="mixed")
    await score_one(run, scorer, "ok 0.5", problem_id="equal")
    await score_one(run, scorer, "raise", problem_id="failed")
    mixed, equal, failed = await run.solve_rates.read(["mixed", "equal", "failed"])
    assert mixed == SolveRate(1, (0.5 * (SAMPLES - 1) + 1) / SAMPLES, equal=False)
    assert equal == SolveRate(1, 0.5, equal=True)
    assert failed is None


async def test_thoughts_between_special_tokens_are_found_in_groups_and_in_calls(run: Run) -> None:
    """Their text leaves the tags out."""
    scorer = Scorer(make_verifiers({"answer": {"kind": "exact", "thinking": False}}), RewardSettings(processes=1))
    completion = pb.Completion(text="45")
    completion.special_tokens.extend(pb.SpecialToken(position=i, text=t) for i, t in enumerate(["[THINK]", "[/THINK]"]))
    prompt = pb.Prompt(prompt_id="0", verifier="answer", sampling=pb.SamplingParams(n=SAMPLES))
    prompt.reference.update({"answer": "5"})
    trajectories = [pb.Trajectory(completion=completion) for _ in range(SAMPLES)]
    await put(run, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=prompt, trajectories=trajectories))
    reader = run.consumer(Stream.ROLLOUTS)
    (entry,) = await reader.read(1)
    try:
        await RewardWorker(reader, scorer, EarlyScores(scorer, 100), 2, run.solve_rates).handle(entry)
        item = rew.ScoreItem(response="45", reference=prompt.reference, special_tokens=completion.special_tokens)
        (called,) = await scorer.score("answer", [decode_item(item)])
    finally:
        await scorer.close()
    (scored,) = await run.consumer(Stream.SCORED).read(1)
    rewards = [t.score.reward for t in parse_group(scored).trajectories]
    assert rewards == [1.0] * SAMPLES
    assert called.verdict is not None
    assert called.verdict.reward == 1.0
