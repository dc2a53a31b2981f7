"""What reward records of a group: how long which verifier took, and what it dropped."""

from pathlib import Path

import pytest

from routershift.v1 import trajectory_pb2 as pb
from services.reward.early import EarlyScores
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.worker import RewardWorker
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.collector import Collector
from tests.support.entries import SAMPLES, put
from tests.support.verifiers import ScriptedSettings, ScriptedVerifier

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("response", "attempts", "dropped"), [("ok 0.5", 1, None), ("once", 2, None), ("raise", 2, "verifier_failed")]
)
async def test_a_group_names_its_verifier_and_what_it_took(
    run: Run, tmp_path: Path, response: str, attempts: int, dropped: str | None
) -> None:
    texts = [*["ok 0.5"] * (SAMPLES - 1), f"once {tmp_path / 'fault'}" if response == "once" else response]
    group = pb.TrajectoryGroup(
        prompt=pb.Prompt(verifier="scripted", sampling=pb.SamplingParams(n=SAMPLES)),
        trajectories=[pb.Trajectory(completion=pb.Completion(text=text)) for text in texts],
    )
    scorer = Scorer({"scripted": ScriptedVerifier(ScriptedSettings(timeout_seconds=60))}, RewardSettings())
    try:
        with Collector() as collector, collector.tracing("reward"):
            await put(run, Stream.ROLLOUTS, group, traceparents=[f"00-{TRACE}-{SPAN}-01"])
            reader = run.consumer(Stream.ROLLOUTS)
            (entry,) = await reader.read(1)
            await RewardWorker(reader, scorer, EarlyScores(scorer, 100), 2, run.solve_rates).handle(entry)
    finally:
        await scorer.close()
    assert {(span.trace, span.parent) for span in collector.spans} == {(TRACE, SPAN)}
    (score,) = collector.named("score group")
    seconds, slowest = score.attributes.pop("seconds"), score.attributes.pop("slowest_seconds")
    assert seconds >= slowest > 0
    assert score.attributes == {"verifier": "scripted", "samples": SAMPLES, "early_samples": 0, "attempts": attempts}
    assert [span.failed for span in collector.named("dropped")] == ([dropped] if dropped else [])


async def test_garbage_in_place_of_a_group_ends_its_trace(run: Run) -> None:
    scorer = Scorer({}, RewardSettings())
    with Collector() as collector, collector.tracing("reward"):
        prompt = pb.Prompt(prompt_id="00000000", sampling=pb.SamplingParams(n=SAMPLES))
        assert await run.admit(0, prompt, 1, traceparent=f"00-{TRACE}-{SPAN}-01") == "ok"
        prompts, reader = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
        (entry,) = await prompts.read(1)
        await prompts.pass_on(entry, Stream.ROLLOUTS, b"\xff" * 100)
        (entry,) = await reader.read(1)
        await RewardWorker(reader, scorer, EarlyScores(scorer, 100), 2, run.solve_rates).handle(entry)
    assert [span.failed for span in collector.named("score group")] == ["CorruptDataError"]
    assert [span.failed for span in collector.named("dead")] == ["bad_group"]
