"""Bytes between the ranks of a learner.

Payloads travel as uint8 tensors over gloo on the CPU, whatever carries the gradients. Objects are never pickled: a
payload is what its sender encoded, such as JSON or safetensors.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import UnavailableError

# Followers wait for the next command as long as rank 0 lives: an idle learner is not a broken one.
IDLE = timedelta(days=365)


class Channel:
    """All ranks call the same methods in the same order, each from one thread; a call returns when this rank's part is
    done. What goes through one channel does not wait for what goes through another.

    Every method raises UnavailableError where another rank ended or a deadline passed; this process then has to end.
    """

    rank: int
    size: int

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._idle: dist.ProcessGroup | None = None
        self._prompt: dist.ProcessGroup | None = None  # None: that of the process

    @classmethod
    def open_beside(cls, rank: int, size: int, deadline: timedelta) -> Self:
        """One more channel between the same ranks. Collective. Args: deadline: for all but the wait for a command."""
        made = cls(rank, size)
        made._idle = dist.new_group(backend="gloo", timeout=IDLE)
        made._prompt = dist.new_group(backend="gloo", timeout=deadline)
        return made

    def command(self, payload: bytes | None = None) -> bytes:
        """Like `broadcast`, but followers wait for it without a deadline, as long as rank 0 lives."""
        return self._broadcast(payload, self._idle)

    def broadcast(self, payload: bytes | None = None) -> bytes:
        """Rank 0 gives the payload; all ranks get it."""
        return self._broadcast(payload, self._prompt)

    def scatter(self, payloads: Sequence[bytes] | None = None) -> bytes:
        """Rank 0 gives one payload for each rank; each rank gets its own."""
        with self._together():
            if payloads is None:
                return self._receive(0)
            for rank in range(1, self.size):
                self._send(payloads[rank], rank)
            return payloads[0]

    def gather(self, payload: bytes) -> list[bytes]:
        """Rank 0 gets the payloads of all ranks in their order; the others get []."""
        with self._together():
            if self.rank == 0:
                return [payload, *(self._receive(rank) for rank in range(1, self.size))]
            self._send(payload, 0)
            return []

    def _broadcast(self, payload: bytes | None, group: dist.ProcessGroup | None) -> bytes:
        if self.size == 1:
            return payload or b""
        with self._together():
            length = torch.tensor([len(payload or b"")])
            dist.broadcast(length, 0, group)
            data = torch.empty(int(length), dtype=torch.uint8) if self.rank else _tensor(payload or b"")
            dist.broadcast(data, 0, group)
        return data.numpy().tobytes()

    def _send(self, payload: bytes, to: int) -> None:
        dist.send(torch.tensor([len(payload)]), to, self._prompt)
        dist.send(_tensor(payload), to, self._prompt)

    def _receive(self, source: int) -> bytes:
        length = torch.empty(1, dtype=torch.int64)
        dist.recv(length, source, self._prompt)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(data, source, self._prompt)
        return data.numpy().tobytes()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """torch has no class of its own for a peer that is gone."""
        try:
            yield
        except RuntimeError as error:
            late = "imed out" in str(error)
            raise UnavailableError(
                f"rank {self.rank} of {self.size} lost the other ranks: {error}"
                f"{'; raise learner.parallel.timeout_seconds if they are only slow' if late else ''}"
            ) from error


def _tensor(payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
