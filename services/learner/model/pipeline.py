"""Slices of tensors in host memory on their way through a device: copied in, changed and copied back, overlapping.

On a GPU three streams work at once, on three slices: one comes, one is computed with, one goes. On other devices the
same copies are made one after the other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from services.learner.model.settings import SLOTS


def pin(tensor: Tensor, device: torch.device) -> None:
    """Pins a tensor in host memory for good, where the device is a GPU: else its copies would wait for one another.

    Raises:
        RuntimeError: CUDA cannot pin it.
    """
    if device.type == "cuda" and tensor.numel():
        # Not by torch's allocator of pinned memory, which rounds each size up to a power of two.
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.cuda.check_error(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))


@dataclass(slots=True)
class _Slot:
    """Room on the device for one slice."""

    room: Tensor  # [bytes] uint8
    left: Any = None  # the event after which what was in it is in host memory


class Pipeline:
    """The way of slices within one `with` block. What was brought is back in host memory when it ends."""

    def __init__(self, device: torch.device, slice_bytes: int) -> None:
        """Args: slice_bytes: of the largest slice; the device holds `SLOTS` of them."""
        self._slots = [_Slot(torch.empty(slice_bytes, dtype=torch.uint8, device=device)) for _ in range(SLOTS)]
        self._next = 0
        self._incoming: Any = None
        self._outgoing: Any = None
        if device.type == "cuda":
            stream: Any = torch.cuda.Stream
            self._incoming, self._outgoing = stream(device), stream(device)
            self._incoming.wait_stream(torch.cuda.current_stream(device))  # it may still use what is the slots' now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outgoing is not None:
            self._outgoing.synchronize()

    @contextmanager
    def brought(self, hosts: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The slices on the device, by name; what the body leaves in them goes back.

        Args:
            hosts: contiguous flat tensors of host memory, nothing of which an earlier slice has.
        """
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        here = _divided(slot.room, hosts)
        with self._on(self._incoming):
            if slot.left is not None:
                self._incoming.wait_event(slot.left)
            for name, host in hosts.items():
                here[name].copy_(host, non_blocking=True)
        if self._incoming is not None:
            torch.cuda.current_stream(slot.room.device).wait_stream(self._incoming)
        yield here
        if self._outgoing is not None:
            self._outgoing.wait_stream(torch.cuda.current_stream(slot.room.device))
        with self._on(self._outgoing):
            for name, host in hosts.items():
                host.copy_(here[name], non_blocking=True)
        if self._outgoing is not None:
            slot.left = self._outgoing.record_event()

    @staticmethod
    def _on(stream: Any) -> Any:
        return nullcontext() if stream is None else torch.cuda.stream(stream)


def _divided(room: Tensor, hosts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of the room, the widest dtypes first, so that each begins at a multiple of its own width."""
    found, begin = {}, 0
    for name, host in sorted(hosts.items(), key=lambda each: -each[1].element_size()):
        found[name] = room[begin : begin + host.nbytes].view(host.dtype)
        begin += host.nbytes
    return found
