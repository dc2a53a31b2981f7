"""The stream worker of generation, new weights, and the watch over the engine: the torch engine on a real Redis."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import REGISTRY

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.admission import Appetite
from services.generation.engines.base import EngineInfo, EngineLoad, EngineOptions, EngineSampling, Files, UpdatePolicy
from services.generation.engines.torch.engine import TorchEngine
from services.generation.requests.validation import Requests
from services.generation.service import GenerationService
from services.generation.settings import GenerationSettings, Settings
from services.generation.watch import EngineWatch
from services.generation.weights.loader import WeightsLoader
from services.generation.worker import GenerationWorker
from shared import wire
from shared.errors import MissingDependencyError, UnavailableError
from shared.process.service import background
from shared.settings import RunSettings
from shared.streams.consumer import Consumer
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.trajectory import FinishReason
from shared.weights import published
from shared.weights.published import publish
from tests.support.generation import PROMPT
from tests.support.models import MAX_MODEL_LEN, save_model

SAMPLES = 4
SLOTS = 8


@asynccontextmanager
async def torch_engine(folder: Path, policy: UpdatePolicy = UpdatePolicy.KEEP) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(folder, EngineOptions(MAX_MODEL_LEN, SLOTS, update_policy=policy))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def worker(run: Run, engine: Any, model: Path, **settings: Any) -> tuple[Consumer, GenerationWorker]:
    consumer = run.consumer(Stream.PROMPTS)
    table = GenerationSettings(max_num_seqs=SLOTS, **settings)
    requests = Requests(model, engine.info, default_max_tokens=8)
    return consumer, GenerationWorker(consumer, engine, requests, table, SAMPLES)


async def admit(run: Run, prompts: int, **sampling: Any) -> None:
    for _ in range(prompts):
        index = await run.next_prompt()
        prompt = pb.Prompt(prompt_id=f"{index:08d}", text=PROMPT, sampling=pb.SamplingParams(n=SAMPLES, **sampling))
        assert await run.admit(index, prompt, tickets=1000) == "ok"


async def groups(run: Run, count: int) -> list[pb.TrajectoryGroup]:
    """Takes so many from the rollouts."""
    reader = run.consumer(Stream.ROLLOUTS)
    found: list[pb.TrajectoryGroup] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += [pb.TrajectoryGroup.FromString(entry.payload) for entry in await reader.read(count)]
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # another thread's progress has no event
            await asyncio.sleep(0.002)


def manifest(root: Path, version: int, model: Path) -> pb.WeightsManifest:
    """Publishes a model's weights as a version."""
    data = (model / "model.safetensors").read_bytes()
    return publish(root, version, lambda folder: void((folder / "model.safetensors").write_bytes(data)), keep=9)


def void(_: object) -> None: ...


def refused(reason: str) -> float:
    return float(metrics.UPDATES_REFUSED.labels(reason)._value.get())


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"routershift_generation_{name}", labels) or 0.0


async def test_the_worker_keeps_the_engine_busy_and_little_waiting(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    await admit(run, 24, max_tokens=30)
    loads: list[EngineLoad] = []
    counters = ("rollouts_total", "group_seconds_count", "router_bytes_total")
    before = [metric(name) for name in counters], [metric("tokens_total", kind=kind) for kind in ("prompt", "response")]
    async with torch_engine(model) as engine:
        consumer, generation = worker(run, engine, model)

        def room() -> int:
            loads.append(engine.load)
            return generation.room()

        async with background(consumer.each(generation.handle, room, asyncio.Event())):
            made = await groups(run, 24)
            await until(lambda: metric("rollouts_total") == before[0][0] + 24 * SAMPLES)
    assert {len(group.trajectories) for group in made} == {SAMPLES}
    assert max(load.running for load in loads) == SLOTS
    # All slots, an eighth of them ahead, and what rounding up to whole groups adds.
    assert max(load.running + load.waiting for load in loads) <= SLOTS + 1 + SAMPLES
    assert (await run.ledger()).in_flight == 24 * SAMPLES
    completions = [trajectory.completion for group in made for trajectory in group.trajectories]
    traces = [(c.router_trace.expert_ids, c.router_trace.log_scores) for c in completions]
    exported = sum(len(tensor.data) for trace in traces for tensor in trace)
    assert [metric(name) for name in counters] == [
        value + more for value, more in zip(before[0], (24 * SAMPLES, 24, exported), strict=True)
    ]
    tokens = 24 * len(PROMPT), sum(c.token_ids.shape[0] for c in completions)
    assert [metric("tokens_total", kind=kind) for kind in ("prompt", "response")] == [
        value + more for value, more in zip(before[1], tokens, strict=True)
    ]


@pytest.mark.parametrize(
    ("load", "held", "sampling", "room"),
    [
        (EngineLoad(0, 0), 0, 0, 18),  # 128 slots and 16 ahead
        (EngineLoad(120, 0), 15, 15, 3),
        (EngineLoad(120, 0), 18, 15, 0),  # three groups on their way fill it
        (EngineLoad(128, 16), 18, 18, 0),
        (EngineLoad(128, 0), 128, 128, 2),  # stragglers of many groups: room is counted in sequences
        (EngineLoad(40, 20), 8, 8, 0),  # more waits than is kept ahead, for want of memory
        (EngineLoad(40, 0, kv_cache_usage=0.95), 5, 5, 0),
        (EngineLoad(40, 0, kv_cache_usage=0.95), 0, 0, 4),  # direct calls have the rest
        (EngineLoad(128, 500), 1, 1, 3),  # as above
        (EngineLoad(0, 0), 30, 0, 0),  # the next stream is full, and the results pile up
    ],
)
def test_how_many_groups_the_worker_takes(load: EngineLoad, held: int, sampling: int, room: int) -> None:
    assert max(0, Appetite(128, 8, 0.9).room(load, held, sampling)) == room


async def test_what_an_update_aborts_is_sampled_again_from_the_new_weights(run: Run, tmp_path: Path) -> None:
    model, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", seed=1)
    again = metrics.SAMPLED_AGAIN._value.get()
    await admit(run, 1, max_tokens=200, seed=7)
    async with torch_engine(model, UpdatePolicy.ABORT) as engine:
        consumer, generation = worker(run, engine, model)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            await until(lambda: engine.load.tokens > 8)
            await engine.update_weights(1, Files([other / "model.safetensors"]))
            (group,) = await groups(run, 1)
        tokens = list(group.prompt.token_ids)
        alone = await engine.generate(tokens, EngineSampling(SAMPLES, 1.0, 1.0, 0, 200, 7))
    samples = [wire.decode_completion(trajectory.completion) for trajectory in group.trajectories]
    assert [sample.index for sample in samples] == list(range(SAMPLES))
    assert FinishReason.ABORTED not in {sample.finish_reason for sample in samples}
    renewed = [sample.index for sample in samples if sample.versions[0].version == 1]
    assert len(renewed) == metrics.SAMPLED_AGAIN._value.get() - again > 0
    for index in renewed:
        assert samples[index].token_ids.tolist() == alone[index].token_ids.tolist()


async def test_a_group_aborted_too_often_is_dropped_and_counted(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path)
    dropped = metrics.DROPPED.labels("aborted")._value.get()
    await admit(run, 1, max_tokens=200, seed=7)
    async with torch_engine(model, UpdatePolicy.ABORT) as engine:
        consumer, generation = worker(run, engine, model, attempts=2)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            for version in (1, 2):
                seen = engine.load.tokens
                await until(lambda seen=seen: engine.load.tokens > seen + 4)  # type: ignore[misc]  # a lambda's default
                await engine.update_weights(version, Files([model / "model.safetensors"]))
            await until(lambda: consumer.held == 0)
    ledger = await run.ledger()
    assert ledger.dropped == {"aborted": SAMPLES}
    assert ledger.in_flight == 0
    assert metrics.DROPPED.labels("aborted")._value.get() == dropped + SAMPLES


async def test_a_prompt_that_the_model_cannot_take_is_a_dead_letter_and_the_next_is_served(
    run: Run, tmp_path: Path
) -> None:
    model = save_model(tmp_path)
    await admit(run, 1, max_tokens=MAX_MODEL_LEN)
    await admit(run, 1, max_tokens=4)
    async with torch_engine(model) as engine:
        consumer, generation = worker(run, engine, model)
        async with background(consumer.each(generation.handle, generation.room, asyncio.Event())):
            (group,) = await groups(run, 1)
            await until(lambda: consumer.held == 0)
    assert group.prompt.prompt_id == f"{1:08d}"
    ledger = await run.ledger()
    assert (ledger.dead, ledger.in_flight) == ({"bad_prompt": SAMPLES}, SAMPLES)


async def test_versions_that_come_during_an_update_are_skipped_for_the_newest(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    root = tmp_path / "weights"
    announced = {version: manifest(root, version, model) for version in (1, 2, 3)}
    await run.announce(announced[1])
    taken: list[int] = []
    timed = "weights_update_seconds_count", "weights_pause_seconds_count"
    before = [metric(name) for name in timed]
    async with torch_engine(model) as engine:
        loader = WeightsLoader(engine, root)

        async def newest() -> pb.WeightsManifest | None:
            found = await run.newest_weights()
            if found is not None and found.version == 1:
                await run.announce(announced[2])
                await run.announce(announced[3])
            taken.append(engine.version)
            return found

        async with background(loader.follow(newest, 0.001)):
            await until(lambda: metric("weights_version") == 3)
    assert 1 in taken
    assert 2 not in taken
    assert [metric(name) for name in timed] == [value + 2 for value in before]


@pytest.mark.parametrize("damage", ["truncated", "other architecture", "gone", "gone once it was verified"])
async def test_weights_that_cannot_be_taken_are_counted_and_the_old_ones_serve_whole(
    run: Run, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", seed=1, hidden_size=64)
    root = tmp_path / "weights"
    bad = manifest(root, 1, other if damage == "other architecture" else model)
    file = root / bad.folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "gone once it was verified":  # as where a learner publishes so fast that it is not kept
        verify = published.verify

        def verify_and_lose(folder: Path, found: pb.WeightsManifest) -> list[Path]:
            paths = verify(folder, found)
            if found.version == 1:
                file.unlink()
            return paths

        monkeypatch.setattr(published, "verify", verify_and_lose)
    reason = {"truncated": "corruptdata", "other architecture": "invalidinput"}.get(damage, "notfound")
    before = refused(reason)
    await run.announce(bad)
    async with torch_engine(model) as engine:
        loader = WeightsLoader(engine, root)
        sampling = EngineSampling(1, 0.0, 1.0, 0, 20, None)
        (old,) = await engine.generate([3, 4], sampling)
        async with background(loader.follow(run.newest_weights, 0.001)):
            await until(lambda: refused(reason) == before + 1)
            (still,) = await engine.generate([3, 4], sampling)
            assert engine.version == 0
            assert still.logprobs.tolist() == old.logprobs.tolist()
            await run.announce(manifest(root, 2, model))  # the next one is taken as ever
            await until(lambda: engine.version == 2)
        assert refused(reason) == before + 1


@dataclass
class Puppet:
    """An engine of which only the load is looked at: no real one stands still when it is told to."""

    load: EngineLoad = field(default=EngineLoad(0, 0))
    alive: bool = True
    info: EngineInfo | None = None
    version: int = 0

    async def healthy(self) -> bool:
        return self.alive


async def test_the_watch_tells_a_wedge_from_work(tmp_path: Path) -> None:
    engine: Any = Puppet()
    loader = WeightsLoader(engine, tmp_path)
    watch = EngineWatch(engine, loader, stall_seconds=30)
    for _ in range(50):
        watch.look(1.0)  # nothing to do
    for tokens in range(50):
        engine.load = EngineLoad(2, 1, tokens=tokens)
        watch.look(1.0)  # at work
    for _ in range(30):
        watch.look(1.0)
    with pytest.raises(UnavailableError, match=r"sampled nothing for 31 s, over generation\.stall_seconds = 30"):
        watch.look(1.0)


async def test_the_watch_shows_the_load(tmp_path: Path) -> None:
    engine: Any = Puppet(EngineLoad(5, 3, kv_cache_usage=0.25, preemptions=2))
    watch = EngineWatch(engine, WeightsLoader(engine, tmp_path), stall_seconds=30)
    preempted = metric("preemptions_total")
    watch.look(1.0)
    engine.load = EngineLoad(4, 1, kv_cache_usage=0.5, preemptions=7)
    watch.look(1.0)
    shown = [metric(name) for name in ("running_sequences", "waiting_sequences", "kv_cache_usage_ratio")]
    assert shown == [4, 1, 0.5]
    assert metric("preemptions_total") == preempted + 7


async def test_the_watch_waits_for_an_update_under_way(tmp_path: Path) -> None:
    engine: Any = Puppet(EngineLoad(2, 0))
    loader = WeightsLoader(engine, tmp_path)
    watch = EngineWatch(engine, loader, stall_seconds=2)
    watch.look(1.0)
    async with loader._lock:
        for _ in range(5):
            watch.look(1.0)
    watch.look(2.0)
    with pytest.raises(UnavailableError):
        watch.look(1.0)


async def test_the_watch_sees_a_dead_engine(tmp_path: Path) -> None:
    engine: Any = Puppet(alive=False)
    with pytest.raises(UnavailableError, match="the engine has died"):
        await EngineWatch(engine, WeightsLoader(engine, tmp_path), stall_seconds=30).run()


@pytest.mark.vllm
async def test_a_wedged_vllm_ends_the_service_and_its_prompts_are_kept(run: Run, tmp_path: Path) -> None:
    settings = Settings(
        run=RunSettings(id="wedged", folder=tmp_path, model=save_model(tmp_path / "model"), samples_per_group=SAMPLES),
        generation=GenerationSettings(vllm={"kv_cache_bytes": 64 << 20}, stall_seconds=2),
    )
    try:
        service = GenerationService(settings)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    before = set(psutil.Process().children(recursive=True))
    await service.start(run)
    (child,) = (
        p for p in set(psutil.Process().children(recursive=True)) - before if "EngineCore" in " ".join(p.cmdline())
    )
    try:
        await admit(run, 1)
        async with asyncio.timeout(60):
            serving = asyncio.create_task(service.work(asyncio.Event()))
            await groups(run, 1)
            child.send_signal(signal.SIGSTOP)
            await admit(run, 1)
            with pytest.raises(UnavailableError, match="sampled nothing for"):
                await serving
    finally:
        await service.close()
    assert not child.is_running()
    assert (await run.backlog())[Stream.PROMPTS].entries == 1
