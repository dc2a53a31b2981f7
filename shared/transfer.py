"""Weights over the network: the learner broadcasts a version's tensors to the workers of generation.

The group lives for one version: workers come and go between two of them, and one that fails takes nothing with it but
this version. Over NCCL where the tensors are on GPUs, over gloo where they are not. Tensors travel in buckets of bytes,
so that ten thousand small ones cost as little as a few large ones. A receiver hands over all or nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from shared.errors import CorruptDataError, UnavailableError

_BUCKET_BYTES = 64 << 20

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


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver must know of a tensor before it comes."""

    name: str
    dtype: str  # a key of `DTYPES`
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the group of one version meets. The learner is rank 0."""

    host: str
    port: int
    size: int  # the learner and all workers
    seconds: float  # for all to come, and for each bucket


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
    """The learner's side: opens the meeting, so that its port is known before anybody is told of it."""

    def __init__(self, host: str, receivers: int, seconds: float, device: torch.device) -> None:
        """Listens on a free port of `host`."""
        self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_deadline(seconds))  # type: ignore[attr-defined]  # documented, but not exported
        self._device = device
        self.meeting = Meeting(host, self._store.port, receivers + 1, seconds)

    def send(self, files: Sequence[Path]) -> None:
        """Returns when every receiver has everything.

        Raises:
            UnavailableError: a receiver did not come, or left.
        """
        try:
            group = _join(self._store, 0, self.meeting, self._device)
            tensors = _tensors(files)
            for bucket in _buckets(specs_of(files)):
                parts = [tensor.view(-1).view(torch.uint8) for tensor in islice(tensors, len(bucket))]
                _broadcast(group, torch.cat(parts).to(self._device), self.meeting)
            group.barrier().wait(_deadline(self.meeting.seconds))
        except RuntimeError as error:
            raise UnavailableError(f"weights were not sent to all {self.meeting.size - 1} workers: {error}") from error


def receive(meeting: Meeting, rank: int, specs: Sequence[TensorSpec], device: torch.device) -> dict[str, Tensor]:
    """All tensors of a version, on the CPU.

    Args:
        rank: of this worker in the group, from 1.
        device: that the bytes arrive on: of the group, not of the result.

    Raises:
        UnavailableError: the learner or another worker did not come, or left; nothing was handed over.
    """
    deadline = _deadline(meeting.seconds)
    tensors: dict[str, Tensor] = {}
    try:
        store = dist.TCPStore(meeting.host, meeting.port, is_master=False, timeout=deadline)  # type: ignore[attr-defined]  # documented, but not exported
        group = _join(store, rank, meeting, device)
        for bucket in _buckets(specs):
            packed = torch.empty(sum(spec.nbytes for spec in bucket), dtype=torch.uint8, device=device)
            _broadcast(group, packed, meeting)
            arrived, begin = packed.cpu(), 0
            for spec in bucket:
                part = arrived[begin : begin + spec.nbytes]
                # A copy is aligned for its dtype, and lets the bucket go.
                tensors[spec.name] = part.clone().view(DTYPES[spec.dtype]).view(spec.shape)
                begin += spec.nbytes
        group.barrier().wait(deadline)
    except RuntimeError as error:
        raise UnavailableError(f"weights did not arrive from {meeting.host}:{meeting.port}: {error}") from error
    return tensors


def _deadline(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _join(store: Any, rank: int, meeting: Meeting, device: torch.device) -> Any:
    """A group beside those of torchrun and of vLLM, which belong to others."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = _deadline(meeting.seconds)
        return dist.ProcessGroupNCCL(store, rank, meeting.size, options)
    return dist.ProcessGroupGloo(store, rank, meeting.size, _deadline(meeting.seconds))


def _broadcast(group: Any, packed: Tensor, meeting: Meeting) -> None:
    group.broadcast(packed, 0).wait(_deadline(meeting.seconds))
    if packed.is_cuda:
        torch.cuda.current_stream(packed.device).synchronize()


def _buckets(specs: Sequence[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Neighbours that together take at most `_BUCKET_BYTES`, or one that alone takes more."""
    bucket: list[TensorSpec] = []
    for spec in specs:
        if bucket and sum(each.nbytes for each in bucket) + spec.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(spec)
    if bucket:
        yield bucket


def _tensors(files: Sequence[Path]) -> Iterator[Tensor]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                yield tensors.get_tensor(name)
