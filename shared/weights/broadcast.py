"""Weights over the network: the learner broadcasts a version's tensors to the workers of generation.

The group lives for one version: workers come and go between two of them, and one that fails takes nothing with it but
this version. Over NCCL where the learner sends from a GPU, over gloo otherwise. Nobody joins the group before all have
come to the rendezvous, for a group cannot be left while it forms. Tensors travel in buckets of bytes, so that ten
thousand small ones cost as little as a few large ones. A receiver hands over all or nothing.

The way over NCCL was written from torch's interface and has never been run: it takes two GPUs.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from shared.errors import CorruptDataError, UnavailableError
from shared.weights.rendezvous import Rendezvous, TensorSpec

T = TypeVar("T")

_BUCKET_BYTES = 64 << 20
_LOOK_SECONDS = 0.02
# To connect, once all have come. gloo does not notice the end of one of them meanwhile.
_JOIN_SECONDS = 20.0

# What the store of a rendezvous holds: who has come, and then how they go on (the backend and the bytes of a bucket),
# or that they do not.
_HERE, _WAY = "here/{}", "way"
_GLOO, _NCCL, _OFF = "gloo", "nccl", "off"

# By the names of the safetensors format.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def specs_of(files: Sequence[Path]) -> list[TensorSpec]:
    """The tensors of safetensors files, from their headers, in the order in which `Sender.send` sends them.

    Raises:
        CorruptDataError: a dtype that does not travel.
    """
    specs = []
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                part = tensors.get_slice(name)
                if (dtype := part.get_dtype()) not in DTYPES:
                    raise CorruptDataError(f"{name} in {file} is of dtype {dtype}; expected one of {', '.join(DTYPES)}")
                specs.append(TensorSpec(name, dtype, tuple(part.get_shape())))
    return specs


class Sender:
    """The learner's side: opens the rendezvous, so that its port is known before anybody is told of it."""

    def __init__(self, host: str, receivers: int, seconds: float, device: torch.device) -> None:
        """Listens on a free port.

        Args:
            host: address of this machine, as the receivers know it.
            receivers: workers, not replicas.
            seconds: for all to come, and then for each bucket.
            device: that bytes leave from: a GPU sends over NCCL, to workers that have other GPUs.

        Raises:
            UnavailableError: this machine cannot be reached at `host`.
        """
        try:
            self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_deadline(seconds))  # type: ignore[attr-defined]  # documented, but not exported
        except RuntimeError as error:
            raise UnavailableError(f"no rendezvous can be opened at {host}: {error}") from error
        self._device = device
        self._called_off = threading.Event()
        self.rendezvous = Rendezvous(host, self._store.port, receivers + 1, seconds)

    def send(self, files: Sequence[Path]) -> None:
        """Returns when every receiver has everything.

        Raises:
            UnavailableError: a receiver did not come, or left; or the rendezvous was called off.
            CorruptDataError: a dtype that does not travel.
            OSError, SafetensorError: a file is not there, or not whole.
        """
        try:
            self._gather()
            group = _join(self._store, 0, self.rendezvous, self._device)
            tensors = _tensors(files)
            for bucket in _buckets(specs_of(files), _BUCKET_BYTES):
                parts = [tensor.view(-1).view(torch.uint8) for tensor in islice(tensors, len(bucket))]
                _broadcast(group, torch.cat(parts).to(self._device), self.rendezvous)
            _part(group, self.rendezvous)
        except RuntimeError as error:
            raise UnavailableError(
                f"weights were not sent to all {self.rendezvous.size - 1} workers: {error}"
            ) from error

    def call_off(self) -> None:
        """Sends everybody home if not all have come. A transfer that has begun goes on."""
        self._called_off.set()

    def _gather(self) -> None:
        """Returns when all have come, and has told them how to go on."""
        deadline = time.monotonic() + self.rendezvous.seconds
        while self._missing():
            if not (self._called_off.wait(_LOOK_SECONDS) or time.monotonic() > deadline):
                continue
            if not (missing := self._missing()):
                break  # the last of them has come meanwhile
            self._store.set(_WAY, _OFF)
            why = (
                "called off"
                if self._called_off.is_set()
                else f"over after learner.transfer.timeout_seconds, {self.rendezvous.seconds:g},"
            )
            raise UnavailableError(
                f"weights were not sent to all {self.rendezvous.size - 1} workers: the rendezvous was {why} while "
                f"{missing} had not come"
            )
        backend = _NCCL if self._device.type == "cuda" else _GLOO
        self._store.set(_WAY, f"{backend} {_BUCKET_BYTES}")

    def _missing(self) -> int:
        """Workers that have not come."""
        return sum(not self._store.check([_HERE.format(rank)]) for rank in range(1, self.rendezvous.size))


def receive(rendezvous: Rendezvous, rank: int, specs: Sequence[TensorSpec], device: torch.device) -> dict[str, Tensor]:
    """All tensors of a version, on the CPU.

    Args:
        rank: of this worker in the group, from 1.
        device: of this worker; NCCL delivers to it.

    Raises:
        UnavailableError: the learner or another worker did not come, or left; nothing was handed over.
    """
    deadline = _deadline(rendezvous.seconds)
    tensors: dict[str, Tensor] = {}
    _knock(rendezvous)
    try:
        store = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=deadline)  # type: ignore[attr-defined]  # documented, but not exported
        store.set(_HERE.format(rank), "")
        backend, _, bucket_bytes = store.get(_WAY).decode().partition(" ")
        if backend == _OFF:
            raise UnavailableError(
                f"the rendezvous at {rendezvous.host}:{rendezvous.port} was called off: not all had come"
            )
        if backend == _GLOO:
            device = torch.device("cpu")
        group = _join(store, rank, rendezvous, device)
        for bucket in _buckets(specs, int(bucket_bytes)):
            packed = torch.empty(sum(spec.nbytes for spec in bucket), dtype=torch.uint8, device=device)
            _broadcast(group, packed, rendezvous)
            arrived, begin = packed.cpu(), 0
            for spec in bucket:
                part = arrived[begin : begin + spec.nbytes]
                # A copy is aligned for its dtype, and lets the bucket go.
                tensors[spec.name] = part.clone().view(DTYPES[spec.dtype]).view(spec.shape)
                begin += part.numel()
        _part(group, rendezvous)
    except RuntimeError as error:
        raise UnavailableError(f"weights did not arrive from {rendezvous.host}:{rendezvous.port}: {error}") from error
    return tensors


async def detached(work: Callable[[], T]) -> T:
    """Awaits `work` in a thread that does not keep the process alive: nothing wakes gloo before its deadline."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if done.done() else settled())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            failure = error
            settle(lambda: done.set_exception(failure))
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="transfer", daemon=True).start()
    return await done


def _deadline(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _knock(rendezvous: Rendezvous) -> None:
    """Raises UnavailableError where the rendezvous is over. A store would go on asking for it until the deadline."""
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), rendezvous.seconds).close()
    except OSError as error:
        raise UnavailableError(f"the rendezvous at {rendezvous.host}:{rendezvous.port} is over: {error}") from error


def _join(store: Any, rank: int, rendezvous: Rendezvous, device: torch.device) -> Any:
    """A group beside those of torchrun and of vLLM, which belong to others; collectives have deadlines of their own."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _deadline(rendezvous.seconds)
        return dist.ProcessGroupNCCL(store, rank, rendezvous.size, options)
    return dist.ProcessGroupGloo(store, rank, rendezvous.size, _deadline(min(_JOIN_SECONDS, rendezvous.seconds)))


def _broadcast(group: Any, packed: Tensor, rendezvous: Rendezvous) -> None:
    options = dist.BroadcastOptions()
    options.rootRank, options.timeout = 0, _deadline(rendezvous.seconds)
    group.broadcast([packed], options).wait(options.timeout)
    if packed.is_cuda:
        torch.cuda.current_stream(packed.device).synchronize()


def _part(group: Any, rendezvous: Rendezvous) -> None:
    """Nobody leaves before everybody has everything."""
    options = dist.BarrierOptions()
    options.timeout = _deadline(rendezvous.seconds)
    group.barrier(options).wait(options.timeout)


def _buckets(specs: Sequence[TensorSpec], most_bytes: int) -> Iterator[list[TensorSpec]]:
    """Neighbours that together take so many bytes at most, or one that alone takes more."""
    bucket: list[TensorSpec] = []
    taken = 0
    for spec in specs:
        if bucket and taken + spec.nbytes > most_bytes:
            yield bucket
            bucket, taken = [], 0
        bucket.append(spec)
        taken += spec.nbytes
    if bucket:
        yield bucket


def _tensors(files: Sequence[Path]) -> Iterator[Tensor]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                yield tensors.get_tensor(name)
