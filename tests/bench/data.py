"""Host seconds a GB from where arrays lie to the learner's tensors, in the stream and in a payload store.

Groups of long responses with router traces in the shape of Qwen3-30B-A3B go the way of a run: through the scripts of
the streams on a real Redis, and for the store `folder` into files. The learner's own collector and planner read, check
and collate them. What is left out is the accelerator: a step waits for as long as it would compute, with the host idle.

`critical` is the host's time between the end of a step and the beginning of the next: all of it in the stream, and with
a payload store what was not done while the step before computed. `wait_share` is its part of the whole time. Files are
read from the page cache, as where writers and learner share a machine; a network would add to what is hidden.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterTrace, Trajectory, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.learner.checkpointing.durable import Durable
from services.learner.checkpointing.publisher import Publisher
from services.learner.collector import Collected, Collector
from services.learner.data.batch import Group
from services.learner.data.check import Limits, check_group
from services.learner.data.plan import Planner
from services.learner.monitoring.samples import SampleKeeper
from services.learner.settings import LearnerSettings, Settings
from services.learner.trainer import Trainer
from shared.payloads.bulk import Bulk
from shared.payloads.registry import make_store
from shared.payloads.settings import PayloadSettings
from shared.settings import RedisSettings, RolloutSettings, RunSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.consumer import Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.bench.timing import Spread, cpu_seconds
from tests.support.redis_server import Server

STREAM, FOLDER = "stream", "folder"
LAYOUT = RouterLayout(tuple(range(48)), 128, 8, ScoreFunction.SOFTMAX)  # of Qwen3-30B-A3B
VOCABULARY = 151_936
_PROMPT = 512
_SAMPLES = 4
# 3.3 billion active parameters, 8 FLOPs for each and token (layers are computed again), 780 bytes a token, four H200
# at 40 % of 990 TFLOP/s: 21 s of computing a GB.
_STEP_SECONDS_PER_GB = 21.0
QUICK = {"tokens": 2048, "steps": 1, "rounds": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=16_384, help="of a response")
    parser.add_argument("--groups", type=int, default=2, help=f"of {_SAMPLES} responses in a step")
    parser.add_argument("--steps", type=int, default=2, help="that count, of each round and path")
    parser.add_argument("--rounds", type=int, default=3, help="paired turns of both paths")
    parser.add_argument("--seconds-per-gb", type=float, default=_STEP_SECONDS_PER_GB, help="that a step computes")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both paths cost, in turns, and how many times less the folder costs where it counts."""
    found: dict[str, list[_Cost]] = {STREAM: [], FOLDER: []}
    for i in range(arguments.rounds):
        for path in list(found)[:: 1 if i % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(prefix="routershift-") as folder:
                cost = asyncio.run(_turn(path, arguments, Path(folder)))
            found[path].append(cost)
            sys.stderr.write(f"round {i + 1}/{arguments.rounds}: {path} {cost.critical_per_gb:.3g} s/GB critical\n")
    pairs = list(zip(found[STREAM], found[FOLDER], strict=True))
    return {
        "gb_per_step": found[STREAM][0].gigabytes / arguments.steps,
        "step_seconds_per_gb": arguments.seconds_per_gb,
        "paths": {path: _figures(costs) for path, costs in found.items()},
        "critical_ratio": asdict(Spread.of([old.critical_per_gb / new.critical_per_gb for old, new in pairs])),
        "cpu_ratio": asdict(Spread.of([new.cpu_per_gb / old.cpu_per_gb for old, new in pairs])),
    }


@dataclass(slots=True)
class _Cost:
    """The steps of a turn that count."""

    gigabytes: float = 0.0
    critical: float = 0.0  # seconds, of which
    collating: float = 0.0
    total: float = 0.0  # seconds
    cpu: float = 0.0  # seconds

    @property
    def critical_per_gb(self) -> float:
        return self.critical / self.gigabytes

    @property
    def cpu_per_gb(self) -> float:
        return self.cpu / self.gigabytes


def _figures(costs: Sequence[_Cost]) -> dict[str, Any]:
    return {
        "critical_seconds_per_gb": asdict(Spread.of([cost.critical_per_gb for cost in costs])),
        "collating_seconds_per_gb": asdict(Spread.of([cost.collating / cost.gigabytes for cost in costs])),
        "cpu_seconds_per_gb": asdict(Spread.of([cost.cpu_per_gb for cost in costs])),
        "wait_share": asdict(Spread.of([cost.critical / cost.total for cost in costs])),
    }


class _NotYetDurable:
    """Stands for checkpoints: none is written, and no group was trained on before."""

    def contains(self, group: str) -> bool:
        return False

    async def knows(self, entry: Entry) -> bool:
        return False


class _NothingPublished:
    """Stands for the versions of the weights."""

    newest = 0


class _Paced:
    """Stands for the trainer, whose checks and plan are the real ones: a step is a pause."""

    step = 0
    has_ranks = False

    def __init__(self, settings: LearnerSettings, tokens: int) -> None:
        self._planner = Planner(settings, tokens, ranks=1, with_routes=True, is_flat=True)
        self._limits = Limits(VOCABULARY, _PROMPT + tokens, LAYOUT)

    def check(self, group: Group) -> None:
        check_group(group, self._limits)

    def drop_reason(self, group: Group) -> str | None:
        return self._planner.drop_reason(group)

    def plan(self, groups: Sequence[Group]) -> object:
        return self._planner.plan(groups, seed=0, step=self.step)


async def _turn(path: str, arguments: argparse.Namespace, folder: Path) -> _Cost:
    settings = _settings(arguments, folder)
    store = make_store(PayloadSettings(store=FOLDER, folder=folder), folder / "bench") if path == FOLDER else None
    streams = StreamSettings(max_bytes=16 << 30, block_seconds=0.05)
    with Server(folder, folder / "r.sock", appendonly=False) as server:
        redis = await connect(RedisSettings(url=server.url))
        run = Run(redis, "bench", streams, Bulk(store, PayloadSettings(store=FOLDER)) if store else None)
        await run.open()
        size = await _produce(run, arguments)
        cost = await _learn(run, settings, arguments, size / 1e9)
        await redis.aclose()
    return cost


def _settings(arguments: argparse.Namespace, folder: Path) -> Settings:
    own = LearnerSettings.model_validate({"samples": {"groups": 0, "dropped": 0}, "micro_batch_tokens": 16_384})
    run = RunSettings(id="bench", folder=folder, model=folder, groups_per_step=arguments.groups)
    return Settings(run=run, rollout=RolloutSettings(n=_SAMPLES, max_tokens=arguments.tokens), learner=own)


async def _learn(run: Run, settings: Settings, arguments: argparse.Namespace, gigabytes: float) -> _Cost:
    """Args: gigabytes: of a step."""
    trainer = _Paced(settings.learner, arguments.tokens)
    consumer = run.consumer(Stream.SCORED)
    durable = cast(Durable, _NotYetDurable())
    publisher = cast(Publisher, _NothingPublished())
    collector = Collector(settings, cast(Trainer, trainer), run, consumer, durable, publisher, SampleKeeper(settings))
    cost, began, spent = _Cost(), 0.0, 0.0
    for i in range(arguments.steps + 1):
        started = time.perf_counter()
        if i == 1:  # nothing computes before the first step, whose groups nobody can read ahead
            began, spent = started, cpu_seconds()
        while not collector.is_full:
            await collector.read(drops=False)
        batch = collector.take()
        async with collector.ahead(batch):
            collated = await _step(trainer, batch, arguments.seconds_per_gb * gigabytes)
            critical = collated.at - started
        await collector.drop(batch, "bench")
        if i:
            cost.gigabytes += gigabytes
            cost.critical += critical
            cost.collating += collated.seconds
    cost.total, cost.cpu = time.perf_counter() - began, cpu_seconds() - spent
    return cost


@dataclass(frozen=True, slots=True)
class _Collated:
    at: float
    seconds: float


async def _step(trainer: _Paced, batch: Collected, seconds: float) -> _Collated:
    began = time.perf_counter()
    await asyncio.to_thread(trainer.plan, [scored.group for scored in batch.groups])
    at = time.perf_counter()
    await asyncio.sleep(seconds)
    return _Collated(at, at - began)


async def _produce(run: Run, arguments: argparse.Namespace) -> int:
    """Brings the groups of all steps onto the stream of scored groups; gives the bytes of a step."""
    random, size = np.random.default_rng(0), 0
    for i in range((arguments.steps + 2) * arguments.groups):  # of the last step too the next one is read
        group = _group(i, arguments.tokens, random)
        size = int(group.ByteSize())
        await run.admit(i, group.prompt, tickets=1 << 20)
        reader = run.consumer(Stream.PROMPTS)
        (entry,) = await reader.read(1)
        await reader.hand_over(entry, Stream.ROLLOUTS, group)
        reader = run.consumer(Stream.ROLLOUTS)
        (entry,) = await reader.read(1)
        await reader.pass_on(entry, Stream.SCORED, b"")
    return size * int(arguments.groups)


def _group(index: int, tokens: int, random: np.random.Generator) -> pb.TrajectoryGroup:
    """A scored group with random tokens and routes: as many bytes as those of a model, and as many checks."""
    prompt = pb.Prompt(
        prompt_id=f"{index:08d}",
        token_ids=random.integers(0, VOCABULARY, _PROMPT).tolist(),
        verifier="math",
        sampling=pb.SamplingParams(n=_SAMPLES),
    )
    group = pb.TrajectoryGroup(prompt=prompt)
    shape = (tokens, len(LAYOUT.layer_ids), LAYOUT.top_k)
    first = random.integers(0, LAYOUT.num_experts, shape[:2])[..., None]
    ids = (first + np.arange(LAYOUT.top_k)) % LAYOUT.num_experts  # K different ones
    for i in range(_SAMPLES):
        completion = Completion(
            index=i,
            token_ids=random.integers(0, VOCABULARY, tokens, dtype=np.int32),
            logprobs=-random.random(tokens, dtype=np.float32),
            versions=(VersionSpan(0, tokens),),
            finish_reason=FinishReason.STOP,
            router_trace=RouterTrace(
                LAYOUT, ids.astype(LAYOUT.id_dtype), -random.random(shape, dtype=np.float32).astype(np.float16)
            ).coded(),
            text="x" * (4 * tokens),
        )
        name = pb.TrajectoryId(prompt_id=prompt.prompt_id, sample=i)
        trajectory = wire.encode_trajectory(name, Trajectory(completion))
        trajectory.score.CopyFrom(pb.Score(outcome=pb.OUTCOME_SCORED, reward=float(i % 2), verifier="math"))
        group.trajectories.append(trajectory)
    group.generated_at.GetCurrentTime()
    return group
