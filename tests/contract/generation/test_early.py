"""Samples scored as they end: the torch engine, a real reward server and both stream workers on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from routershift.trajectory import Completion
from routershift.v1 import reward_pb2_grpc as rew_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.generation.early.stop import EarlyStop
from services.generation.engines.base import EngineSampling
from services.generation.engines.torch.engine import TorchEngine
from services.reward.early import EarlyScores
from services.reward.scoring import Scorer
from services.reward.server import RewardServicer
from services.reward.settings import RewardSettings
from services.reward.verifiers.registry import make_verifiers
from services.reward.worker import RewardWorker
from shared.clients import RewardClient
from shared.process.service import background
from shared.rpc.server import Server
from shared.settings import EarlyStopSettings
from shared.streams.consumer import parse_group
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.generation_worker import SAMPLES, admit, metric, torch_engine, until, worker
from tests.support.models import save_model

REWARDS = {"length": "def score(response): return len(response)", "none": "def score(response): return 0"}


@asynccontextmanager
async def reward(run: Run, folder: Path) -> AsyncIterator[str]:
    """The address of a reward server, beside whose calls its worker scores the groups of the run."""
    for name, source in REWARDS.items():
        (folder / f"{name}.py").write_text(source)
    files = {name: {"file": str(folder / f"{name}.py")} for name in REWARDS}
    scorer = Scorer(make_verifiers(files), RewardSettings(processes=1))
    early, server, consumer = EarlyScores(scorer, 100), Server(), run.consumer(Stream.ROLLOUTS)
    rew_grpc.add_RewardServiceServicer_to_server(RewardServicer(scorer, early), server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    await server.serving()
    scoring = RewardWorker(consumer, scorer, early, 2, run.solve_rates)
    try:
        async with background(consumer.each(scoring.handle, lambda: 4 - consumer.held, asyncio.Event())):
            yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        await scorer.close()


async def scored(run: Run, count: int) -> list[pb.TrajectoryGroup]:
    reader, found = run.consumer(Stream.SCORED), list[pb.TrajectoryGroup]()
    async with asyncio.timeout(60):
        while len(found) < count:
            found += [parse_group(entry) for entry in await reader.read(count)]
    return sorted(found, key=lambda group: group.prompt.prompt_id)


async def stop_groups(run: Run, folder: Path, model: Path, stop: EarlyStop) -> list[pb.TrajectoryGroup]:
    """Sixteen groups whose rewards are all equal, in waves."""
    for seed in range(0, 16 * SAMPLES, SAMPLES):
        await admit(run, 1, verifier="none", max_tokens=6, seed=seed)
    async with torch_engine(model) as engine, reward(run, folder) as own, RewardClient(own, 10) as client:
        consumer, generation = worker(run, engine, model, client, stop)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            return await scored(run, 16)


async def test_decided_groups_are_stopped_or_weigh_more(run: Run, tmp_path: Path) -> None:
    model, stop = save_model(tmp_path / "m"), EarlyStop(EarlyStopSettings(first=2), SAMPLES)
    for _ in range(50):
        stop.learn("none", [0.0] * SAMPLES)
    outcomes = ("stopped", "equal", "mixed")
    before = [metric("groups_decided_total", outcome=outcome) for outcome in outcomes]
    groups = await stop_groups(run, tmp_path, model, stop)
    stopped = [group for group in groups if group.weight == 0]
    went_on = [group for group in groups if group.weight > 1]
    assert len(stopped) + len(went_on) == 16
    assert {len(group.trajectories) for group in stopped} == {2}
    assert {len(group.trajectories) for group in went_on} == {SAMPLES}
    counts = [
        metric("groups_decided_total", outcome=outcome) - was for outcome, was in zip(outcomes, before, strict=True)
    ]
    assert counts == [len(stopped), len(went_on), 0]
    assert all(t.score.outcome == pb.OUTCOME_SCORED for group in groups for t in group.trajectories)
    ledger = await run.ledger()
    assert (ledger.in_flight, ledger.balanced) == (16 * SAMPLES, True)  # a group is what was prompted
    again = await stop_groups(run, tmp_path, model, stop)  # prompts with the same seeds
    same = [len(a.trajectories) == len(b.trajectories) for a, b in zip(groups, again, strict=True)]
    assert sum(same) > 12  # drawn alike, with probabilities that have moved


async def test_a_first_wave_that_nobody_scores_in_time_decides_nothing(run: Run, tmp_path: Path) -> None:
    model, stop = save_model(tmp_path / "m"), EarlyStop(EarlyStopSettings(first=2), SAMPLES)
    for _ in range(50):
        stop.learn("none", [0.0] * SAMPLES)
    await admit(run, 8, verifier="none", max_tokens=4, seed=3)
    async with torch_engine(model) as engine, reward(run, tmp_path), RewardClient("127.0.0.1:1", 0.2) as nobody:
        consumer, generation = worker(run, engine, model, nobody, stop)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            groups = await scored(run, 8)
    assert {(len(group.trajectories), group.HasField("weight")) for group in groups} == {(SAMPLES, False)}


class LateEngine:
    """The engine, with a last sample of each group that ends once reward has answered for another."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._asked = metric("early_scores_total", outcome="answered")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        found = await self._engine.generate(prompt, sampling)
        if sampling.seed is not None and sampling.seed % 100 == SAMPLES - 1:
            await until(lambda: metric("early_scores_total", outcome="answered") > self._asked)
        return found


async def run_groups(run: Run, folder: Path, model: Path, address: str | None) -> list[pb.TrajectoryGroup]:
    """Four groups, the last two with the seeds of the first two.

    Args:
        address: of a reward server other than the run's; None: its own.
    """
    for seed in (100, 200, 100, 200):
        await admit(run, 1, verifier="length", max_tokens=40, seed=seed)
    async with torch_engine(model) as engine, reward(run, folder) as own, RewardClient(address or own, 60) as client:
        sampler = engine if address else LateEngine(engine)
        consumer, generation = worker(run, sampler, model, client, early_scores=True)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            return await scored(run, 4)


def verdicts() -> float:
    return (
        REGISTRY.get_sample_value("routershift_reward_scores_total", {"verifier": "length", "outcome": "scored"}) or 0.0
    )


async def test_samples_are_judged_once_most_of_them_before_their_group(run: Run, tmp_path: Path) -> None:
    model, before, asked = save_model(tmp_path / "m"), verdicts(), metric("early_scores_total", outcome="answered")
    groups = await run_groups(run, tmp_path, model, None)
    texts = [[t.completion.text for t in group.trajectories] for group in groups]
    assert texts[:2] == texts[2:]  # drawn as they are drawn together
    assert [t.score.reward for group in groups for t in group.trajectories] == [len(t) for each in texts for t in each]
    assert all(t.id.sample == t.completion.index == i for g in groups for i, t in enumerate(g.trajectories))
    assert verdicts() == before + 4 * SAMPLES
    assert metric("early_scores_total", outcome="answered") > asked  # as the last one waits for
    assert (await run.ledger()).in_flight == 4 * SAMPLES


async def test_without_a_reward_server_to_ask_nothing_changes(run: Run, tmp_path: Path) -> None:
    model, failed = save_model(tmp_path / "m"), metric("early_scores_total", outcome="failed")
    groups = await run_groups(run, tmp_path, model, "127.0.0.1:1")
    lengths = [len(t.completion.text) for group in groups for t in group.trajectories]
    assert [t.score.reward for group in groups for t in group.trajectories] == lengths
    assert metric("early_scores_total", outcome="failed") == failed  # nobody waited for an answer
