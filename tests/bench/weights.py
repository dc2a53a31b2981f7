"""What a version of the weights costs on its way from the learner to a replica of generation, by each transfer.

A random model in the shape of a Qwen3-MoE is published in bfloat16, and of each version to the next the last bit of a
share of its entries changes. `delta` are files with what changed beside them (`run.weights_full_every`),
`broadcast_delta` is that over the network. Every transfer has a replica, an engine with its loader, and all take turns
in one process. The learner's part, for which training waits, is `publish`: files are written, hashed and made durable;
what is sent is copied, and compared with the version before. That of generation is `take`: verify or receive, and
serve. `cpu` is that of both. Files are read from the page cache, and the network is that of one machine: `bytes` are
what tells of others.

`pause` is what the engine says of itself, the time of an update in which it samples nothing; `longest_gap` is what a
caller sees: the longest time between two pieces of streamed samples while new weights are taken, with the usual one
beside it. Both are measured in turns of their own, for sampling takes processor time from the others.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from prometheus_client import REGISTRY
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import Engine, EngineSampling
from services.generation.engines.registry import make_engine
from services.generation.settings import GenerationSettings, Settings
from services.generation.weights.loader import WeightsLoader
from services.learner.checkpointing.sending import Sending
from services.learner.distributed.ranks import Ranks
from services.learner.settings import LearnerSettings
from shared.process.detached import detached
from shared.settings import RunSettings
from shared.weights import published, rendezvous
from tests.bench.shapes import SHAPES, Shape, write_model
from tests.bench.timing import Spread, Timings, interleaved
from tests.support.transfers import Holding

QUICK = {"sizes": "tiny", "rounds": 1}
FILES, DELTA, BROADCAST, BROADCAST_DELTA = "files", "delta", "broadcast", "broadcast_delta"
TRANSFERS = (FILES, DELTA, BROADCAST, BROADCAST_DELTA)
_SENT = (BROADCAST, BROADCAST_DELTA)
_LARGE = SHAPES["qwen3-moe-115m"]
SIZES = {
    "tiny": SHAPES["tiny"],
    "22m": _LARGE.with_changes(num_hidden_layers=1),
    "62m": _LARGE.with_changes(num_hidden_layers=4),
    "115m": _LARGE,
}
_PAUSE = "routershift_generation_weights_pause_seconds_sum"
_BYTES = "routershift_generation_weights_bytes_total"
_NAME = "bench"
_STREAMS = 4
_PIECES_BEFORE = 40  # of samples, from which the usual gap is known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="22m,62m,115m", help=f"of {', '.join(SIZES)}, separated by commas")
    parser.add_argument("--changed", type=float, default=0.01, help="share of entries that differ between versions")
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        default=[],
        help="weights/ of a run: tell what share of entries changed from each of its versions to the next",
    )
    parser.add_argument("--engine", default="torch", help="generation.engine")
    parser.add_argument("--rounds", type=int, default=7, help="of each transfer, in turns")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes some minutes."""
    sizes = {name: SIZES[name] for name in arguments.sizes.split(",")}
    return {
        "engine": arguments.engine,
        "changed": arguments.changed,
        "models": {name: _measure(name, shape, arguments) for name, shape in sizes.items()},
        "changed_in": {str(root): changed(root) for root in arguments.weights},
    }


@dataclass(slots=True)
class _Costs:
    """What the turns of one transfer cost."""

    publish: list[float] = field(default_factory=list)  # seconds
    take: list[float] = field(default_factory=list)  # seconds
    moved: list[int] = field(default_factory=list)  # bytes, to one replica
    pause: list[float] = field(default_factory=list)  # seconds
    longest_gap: list[float] = field(default_factory=list)  # seconds
    usual_gap: list[float] = field(default_factory=list)  # seconds


class _Learner:
    """Holds the weights of a model, and changes them."""

    def __init__(self, model: Path, changed: float) -> None:
        self.tensors: dict[str, Tensor] = load_file(model / "model.safetensors")
        self._changed = changed
        self._random = torch.Generator().manual_seed(0)

    def step(self) -> None:
        for tensor in self.tensors.values():
            changes = torch.rand(tensor.shape, generator=self._random) < self._changed
            tensor.view(torch.int16).bitwise_xor_(changes.to(torch.int16))

    def write(self, folder: Path) -> None:
        save_file(self.tensors, folder / "model.safetensors", metadata={"format": "pt"})


class _Replica:
    """One that takes versions by one transfer, from a folder of its own."""

    def __init__(self, transfer: str, engine: Engine, root: Path, learner: _Learner) -> None:
        self.costs = _Costs()
        self._transfer = transfer
        self._engine = engine
        self._root = root
        self.learner = learner
        self._loader = WeightsLoader(engine, root, _NAME)
        keeps_changes = transfer == BROADCAST_DELTA
        self._sending = Sending(Holding(learner.tensors), Ranks.open(), LearnerSettings(), keeps_changes=keeps_changes)
        self._sizes = self._sending.take() if transfer in _SENT else None

    async def turn(self) -> None:
        """One version from the learner's memory to the engine, with nothing else going on."""
        began = time.perf_counter()
        manifest = await self._publish()
        published_at = time.perf_counter()
        await self._take(manifest)
        self.costs.publish.append(published_at - began)
        self.costs.take.append(time.perf_counter() - published_at)

    async def turn_while_sampling(self) -> None:
        """One version while samples are streamed."""
        manifest = await self._publish()
        stamps: list[float] = []
        streams = [asyncio.create_task(self._sample(stamps, seed)) for seed in range(_STREAMS)]
        while len(stamps) < _PIECES_BEFORE:  # noqa: ASYNC110  # another thread's progress has no event
            await asyncio.sleep(0.001)
        paused, began = REGISTRY.get_sample_value(_PAUSE) or 0.0, time.perf_counter()
        await self._take(manifest)
        ended, pieces = time.perf_counter(), len(stamps)
        while len(stamps) == pieces:  # noqa: ASYNC110  # the piece that ends the last gap
            await asyncio.sleep(0.001)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        self.costs.pause.append((REGISTRY.get_sample_value(_PAUSE) or 0.0) - paused)
        self.costs.longest_gap.append(max(b - a for a, b in pairwise(stamps) if a < ended and b > began))
        self.costs.usual_gap.append(_of_steps([b - a for a, b in pairwise(stamps) if b < began]))

    async def _sample(self, stamps: list[float], seed: int) -> None:
        longest = self._engine.info.max_model_len
        while True:
            async for _ in self._engine.stream([3, 4, 5], EngineSampling(1, 1.0, 1.0, 0, longest - 3, seed)):
                stamps.append(time.perf_counter())

    async def _publish(self) -> pb.WeightsManifest:
        version = self._engine.version + 1
        if self._transfer in _SENT:
            self._sizes = await asyncio.to_thread(self._sending.take)
            return pb.WeightsManifest(version=version, folder=published.folder_name(version))
        base = version - 1 if self._transfer == DELTA else None
        return await asyncio.to_thread(published.publish, self._root, version, self.learner.write, keep=2, base=base)

    async def _take(self, manifest: pb.WeightsManifest) -> None:
        before = _moved()
        if self._sizes is None:
            await self._loader.load(manifest)
        else:
            base = manifest.version - 1 if self._transfer == BROADCAST_DELTA else None
            size = self._sizes.whole if base is None else self._sizes.changes or 0
            sender = await detached(lambda: self._sending.open(self._engine.info.workers, base))
            place = rendezvous.encode(sender.rendezvous, {_NAME: 1}, self._sending.specs, size)
            manifest.broadcast.CopyFrom(place)
            await asyncio.gather(detached(lambda: self._sending.send(sender)), self._loader.load(manifest))
        self.costs.moved.append(int(_moved() - before))


def changed(root: Path) -> dict[str, list[float]]:
    """Shares of entries that differ from each version on disk to the next: as they are stored, and in bfloat16."""
    versions = [published.folder_name(version) for version in published.versions(root)]
    found: dict[str, list[float]] = {"stored": [], "bfloat16": []}
    for before, after in pairwise(versions):
        count, stored, narrow = 0, 0, 0
        for path in sorted((root / after).glob("*.safetensors")):
            old, new = load_file(root / before / path.name), load_file(path)
            for name, tensor in new.items():
                count += tensor.numel()
                stored += int((tensor != old[name]).sum())
                narrow += int((tensor.bfloat16() != old[name].bfloat16()).sum())
        found["stored"].append(stored / count)
        found["bfloat16"].append(narrow / count)
    return found


def _measure(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routershift-")))
        parameters = _write(shape, folder / "model")
        runner = stack.enter_context(asyncio.Runner())
        replicas = {}
        for transfer in TRANSFERS:
            engine = stack.enter_context(_serving(arguments.engine, folder / "model", runner))
            replicas[transfer] = _Replica(
                transfer, engine, folder / transfer, _Learner(folder / "model", arguments.changed)
            )

        def turn(replica: _Replica) -> None:
            runner.run(replica.turn())

        timings = interleaved(
            {transfer: partial(turn, replica) for transfer, replica in replicas.items()},
            arguments.rounds,
            prepare=lambda transfer: replicas[transfer].learner.step(),
        )
        for i in range(arguments.rounds):
            for transfer, replica in list(replicas.items())[:: 1 if i % 2 == 0 else -1]:
                replica.learner.step()
                runner.run(replica.turn_while_sampling())
                gap = replica.costs.longest_gap[-1]
                sys.stderr.write(f"{name}, round {i + 1}/{arguments.rounds}: {transfer}, longest gap {gap:.3g} s\n")
    costs = {transfer: replica.costs for transfer, replica in replicas.items()}
    return {
        "parameters": parameters,
        "transfers": _figures(costs, timings, arguments.rounds),
        "cpu": timings.cpu(FILES, "version", 1),
    }


def _moved() -> float:
    """Bytes that loaders have read or received in this process."""
    return sum(REGISTRY.get_sample_value(_BYTES, {"kind": kind}) or 0.0 for kind in ("full", "delta", *_SENT))


def _figures(costs: dict[str, _Costs], timings: Timings, rounds: int) -> dict[str, Any]:
    return {
        transfer: {
            "bytes": median(cost.moved),
            "seconds": asdict(timings.spread(transfer)),
            **{
                name: asdict(Spread.of(seconds))
                for name, seconds in {
                    "publish_seconds": cost.publish[-rounds:],
                    "take_seconds": cost.take[-rounds:],
                    "pause_seconds": cost.pause,
                    "longest_gap_seconds": cost.longest_gap,
                    "usual_gap_seconds": cost.usual_gap,
                }.items()
            },
        }
        for transfer, cost in costs.items()
    }


def _of_steps(gaps: list[float]) -> float:
    """The usual time between two tokens of a sample: those of a step come together, with gaps of about 0."""
    return sum(gaps) / len(gaps) * _STREAMS


def _write(shape: Shape, folder: Path) -> int:
    """A random model in bfloat16; gives its number of parameters."""
    parameters = write_model(shape, folder, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.eos_token_id = 0
    model.save_pretrained(folder)
    return parameters


@contextmanager
def _serving(name: str, model: Path, runner: asyncio.Runner) -> Iterator[Engine]:
    settings = Settings(
        run=RunSettings(id=_NAME, model=model), generation=GenerationSettings(engine=name, max_num_seqs=_STREAMS)
    )
    engine = make_engine(settings)
    try:
        runner.run(engine.start())
        yield engine
    finally:
        runner.run(engine.close())
