"""The stream worker of generation with a torch engine, and what it has counted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.early.stop import EarlyStop
from services.generation.engines.base import EngineOptions, UpdatePolicy
from services.generation.engines.torch.engine import TorchEngine
from services.generation.requests.validation import Requests
from services.generation.settings import GenerationSettings
from services.generation.worker import GenerationWorker
from shared.clients import RewardClient
from shared.streams.consumer import Consumer
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.weights.published import publish
from tests.support.generation import PROMPT
from tests.support.models import MAX_MODEL_LEN

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


def worker(
    run: Run,
    engine: Any,
    model: Path,
    reward: RewardClient | None = None,
    early_stop: EarlyStop | None = None,
    **settings: Any,
) -> tuple[Consumer, GenerationWorker]:
    consumer = run.consumer(Stream.PROMPTS)
    table = GenerationSettings(max_num_seqs=SLOTS, **settings)
    requests = Requests(model, engine.info, default_max_tokens=8)
    return consumer, GenerationWorker(consumer, engine, requests, table, SAMPLES, reward, early_stop)


async def admit(run: Run, prompts: int, verifier: str = "", **sampling: Any) -> None:
    for _ in range(prompts):
        index = await run.next_prompt()
        prompt = pb.Prompt(prompt_id=f"{index:08d}", text=PROMPT, verifier=verifier)
        prompt.sampling.MergeFrom(pb.SamplingParams(n=SAMPLES, **sampling))
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


def publish_mixture(
    root: Path, version: int, model: Path, other: Path, share: float, base: int | None
) -> pb.WeightsManifest:
    """Publishes a model's weights with a share of their entries from another; a larger share has those of a smaller."""
    tensors, others = (load_file(folder / "model.safetensors") for folder in (model, other))
    random = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        torch.where(torch.rand(tensor.shape, generator=random) < share, others[name], tensor, out=tensor)

    def write(folder: Path) -> None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return publish(root, version, write, keep=9, base=base)


def void(_: object) -> None: ...


def refused(reason: str) -> float:
    return float(metrics.UPDATES_REFUSED.labels(reason)._value.get())


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"routershift_generation_{name}", labels) or 0.0
