"""The learner's loop on a real Redis: good entries, bad ones, crashes, and the end of a run."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from transformers import AutoModelForCausalLM, AutoTokenizer

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.learner import metrics
from services.learner.data.batch import Group
from services.learner.monitoring.report import StepReport
from services.learner.trainer import Trainer
from shared.errors import PreconditionError
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, Run
from shared.tracking import records
from shared.weights import published
from tests.support.entries import SAMPLES, dead_letters, message, put, until
from tests.support.learning import GROUPS, Learning, checkpoint_steps, no_tickets, nothing_in_flight, tables
from tests.support.models import EOS, VOCABULARY
from tests.support.rollouts import load, random_groups


def gauge(name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(f"routershift_learner_{name}", labels)
    assert value is not None
    return value


def shown_state() -> list[str]:
    return [state for state in ("waiting", "training", "paused", "finished") if gauge("state", state=state)]


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
    (path,) = published.verify(settings.run.weights_root, newest)
    assert path.name == "model.safetensors"
    ids = [AutoTokenizer.from_pretrained(folder).encode("3,7,5:26=") for folder in (model, path.parent)]
    assert ids[0] == ids[1] != []
    assert AutoModelForCausalLM.from_pretrained(path.parent).config.eos_token_id == EOS
    assert (await run.progress()).phase == FINISHED
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
    uncovered = message(groups[7], 7)
    uncovered.trajectories[1].segments.add(role=pb.ROLE_ASSISTANT, tokens=1000, sampled=True)
    foreign_ids = message(groups[8], 8)
    tokens = foreign_ids.trajectories[3].completion.token_ids.shape[0]
    foreign_ids.trajectories[3].segments.add(role=pb.ROLE_TOOL, tokens=1)
    foreign_ids.trajectories[3].segments.add(role=pb.ROLE_ASSISTANT, tokens=tokens, sampled=True)
    foreign_ids.trajectories[3].given_token_ids.CopyFrom(wire.encode_tensor(np.array([VOCABULARY], np.int32)))
    late = message(groups[9], 9)
    await put(run, Stream.SCORED, flat, unscored, short, foreign, torn, uncovered, foreign_ids, *good, late)
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert ledger.trained == GROUPS * SAMPLES
    assert ledger.dropped == {"run_finished": SAMPLES, "zero_variance": SAMPLES}
    assert ledger.dead == {"bad_trajectory": 6 * SAMPLES}
    assert ledger.balanced
    details = " ".join(letter.detail for letter in await dead_letters(redis, run))
    for text in (
        "OUTCOME_FAILED",
        "3 trajectories; expected 4",
        "layer_ids",
        "router_trace.crc32",
        "1000 sampled tokens",
        f"given_token_ids spans {VOCABULARY}",
    ):
        assert text in details


@pytest.mark.parametrize("version", [1, 2**62, 2**63 - 1, -1])
async def test_tokens_of_a_version_that_was_never_published_are_corrupt(
    redis: Redis, run: Run, tmp_path: Path, model: Path, groups: list[Group], version: int
) -> None:
    foreign = message(groups[GROUPS], 0)
    foreign.trajectories[1].completion.versions[0].version = version
    await put(run, Stream.SCORED, foreign, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert (ledger.trained, ledger.dead) == (GROUPS * SAMPLES, {"bad_trajectory": SAMPLES})
    (letter,) = await dead_letters(redis, run)
    assert f"sample 1: tokens of version {version}; the learner has published versions 0 to 0" in letter.detail


async def test_a_learner_that_goes_back_to_a_checkpoint_knows_the_versions_that_it_published_since(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=1)
    for version in (1, 2):
        published.publish(settings.run.weights_root, version, lambda folder: None, keep=2)
    of_version = [message(g, i) for i, g in enumerate(random_groups(load(model), GROUPS, SAMPLES, version=2))]
    await put(run, Stream.SCORED, *of_version)
    async with Learning(settings, run):
        await until(lambda: nothing_in_flight(run))
    assert (await run.ledger()).trained == GROUPS * SAMPLES


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
    settings = tables(tmp_path, model, steps=2, checkpoints__every=2)
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


async def test_what_a_step_leaves_in_the_metrics(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = gauge("model_flops_total"), []

    whole = Trainer.train_step

    def train_step(trainer: Trainer, *arguments: Any) -> StepReport:
        during.extend(shown_state())
        report: StepReport = whole(trainer, *arguments)
        return report

    monkeypatch.setattr(Trainer, "train_step", train_step)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    assert gauge("model_flops_total") > before
    assert during == ["training"]
    assert shown_state() == ["finished"]
    assert [gauge("layer_expert_overlap_ratio", layer=str(layer)) for layer in range(3)] == pytest.approx([1, 1, 1])
    assert all(gauge("layer_expert_load_max_ratio", layer=str(layer)) >= 1 for layer in range(3))
    assert all(0 < gauge("layer_expert_load_entropy_ratio", layer=str(layer)) <= 1 for layer in range(3))
    assert all(gauge("layer_router_shift", layer=str(layer)) < 1e-2 for layer in range(3))


async def test_a_restart_shows_the_step_the_version_and_the_checkpoint_that_it_goes_on_from(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=2)
    async with Learning(settings, run):
        assert gauge("checkpoint_timestamp_seconds") == pytest.approx(time.time(), abs=60)
        assert shown_state() == ["waiting"]
        await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
        await until(lambda: nothing_in_flight(run))
    (checkpointed,) = (tmp_path / "learn" / "checkpoints").glob("step-*")
    os.utime(checkpointed, (1000, 1000))
    metrics.STEP.set(0)
    metrics.VERSION.set(0)
    async with Learning(settings, run) as learning:
        assert gauge("checkpoint_timestamp_seconds") == 1000
        assert (gauge("step"), gauge("weights_version")) == (1, 1)
        await learning.worker.pause()
        assert shown_state() == ["paused"]


async def test_a_payload_of_noise_is_a_dead_letter(redis: Redis, run: Run, tmp_path: Path, model: Path) -> None:
    noise = np.random.default_rng(0).bytes(64)
    await redis.xadd(run.keys(Stream.SCORED), {"g": "noise/0", "n": SAMPLES, "p": noise})
    async with Learning(tables(tmp_path, model), run):

        async def buried() -> bool:
            return await run.dead_letters() == 1

        await until(buried)
    (letter,) = await dead_letters(redis, run)
    assert (letter.payload, letter.reason) == (noise, "bad_trajectory")


async def test_batches_that_are_not_finite_are_kept_and_end_the_run(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = tables(tmp_path, model, steps=5, optimizer__max_skipped=2)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: 3 * GROUPS])))
    learning = Learning(settings, run)
    with torch.no_grad():
        learning.trainer._policy.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(PreconditionError, match=r"2 batches in a row were skipped \(non_finite\).*learning_rate"):
        await asyncio.wait_for(learning.worker.run(learning.stop), 60)
    ledger = await run.ledger()
    assert ledger.dropped == {"non_finite": 2 * GROUPS * SAMPLES}
    assert (ledger.trained, ledger.balanced) == (0, True)
    kept = sorted((settings.run.path / "skipped").glob("*/*.binpb"))
    assert len(kept) == 2 * GROUPS
    assert pb.TrajectoryGroup.FromString(kept[0].read_bytes()).trajectories[0].completion.HasField("router_trace")


async def test_the_best_version_outlives_the_newest(run: Run, tmp_path: Path, model: Path, groups: list[Group]) -> None:
    settings = tables(
        tmp_path, model, steps=5, checkpoints__every=100, checkpoints__keep=1, checkpoints__keep_weights=1
    )
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"evaluate_every": 2})})
    await run.report_progress(Progress(best_version=2, best_accuracy=0.5, evaluated_version=2))
    async with Learning(settings, run) as learning:
        for step in range(5):
            batch = random_groups(load(model), GROUPS, SAMPLES, seed=step, version=step)
            await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(batch)))
            await until(lambda: no_tickets(run))

        async def finished() -> bool:
            return learning.worker.status().phase == FINISHED

        await until(finished)
    assert checkpoint_steps(settings) == [2, 4, 5]
    assert sorted(path.name for path in settings.run.weights_root.iterdir()) == [
        published.folder_name(v) for v in (2, 4, 5)
    ]
