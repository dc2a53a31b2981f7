"""The processes of one learner, as torchrun starts them: who we are, and bytes and sums between us.

Payloads travel as uint8 tensors over gloo on the CPU, whatever carries the gradients. Objects are never pickled: a
payload is what its sender encoded, such as JSON or safetensors.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from services.learner.distributed.mesh import Mesh, make_mesh
from services.learner.distributed.settings import MeshShape
from shared.errors import InvalidInputError, UnavailableError
from shared.process.orphans import die_with_parent

# Others wait this long while one rank loads a model or writes a checkpoint. The end of a process is seen at once.
_DEADLINE = timedelta(minutes=30)
# Followers wait for the next command as long as rank 0 lives: an idle learner is not a broken one.
_IDLE = timedelta(days=365)
# gloo's threads drop their last tensors after the work is done, and abort a process that ends meanwhile.
_SETTLE_SECONDS = 1.0
_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl"}


class Ranks:
    """All ranks call the same methods in the same order; each returns when this rank's part is done.

    Every method raises UnavailableError where another rank ended or a deadline passed; this process then has to end.
    """

    rank: int
    size: int
    device: torch.device  # of the model on this rank

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._idle: dist.ProcessGroup | None = None
        self._shape = MeshShape(1, size)
        self._mesh: Mesh | None = None

    @classmethod
    def open(cls, device: str = "cpu", deadline: timedelta = _DEADLINE) -> Self:
        """Joins the ranks of torchrun's environment; without one, this process is alone.

        Ranks end with the torchrun or the rank 0 that started them, however that ends.

        Args:
            device: of the model. Among several ranks `cuda` becomes the device of torchrun's LOCAL_RANK.
            deadline: for everything but the wait for a command; learner.parallel.timeout_seconds.

        Raises:
            InvalidInputError: a device with an index, among several ranks.
            UnavailableError: the others did not come.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        own = torch.device(device)
        if size == 1:
            return cls(0, 1, own)
        if own.index is not None:
            raise InvalidInputError(f"learner.device is {device!r}, with {size} ranks; leave out the index")
        rank = int(os.environ["RANK"])
        if rank > 0 or "TORCHELASTIC_RUN_ID" in os.environ:
            # Workers of torchrun have sessions of their own, so nothing else ends them when it is killed.
            die_with_parent()
        if own.type == "cuda":
            own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(own)
        ranks = cls(rank, size, own)
        with ranks._together():
            dist.init_process_group(_BACKENDS.get(own.type, "gloo"), timeout=deadline)
            ranks._idle = dist.new_group(backend="gloo", timeout=_IDLE)
        return ranks

    def arrange(self, shape: MeshShape) -> None:
        """Gives `mesh` this shape, whose product is `size`; else all ranks share one copy of the weights."""
        if shape != self._shape:
            self._shape, self._mesh = shape, None

    @property
    def shape(self) -> MeshShape:
        return self._shape

    @property
    def mesh(self) -> Mesh:
        """All ranks. Collective when it is first asked for. Alone, this makes a process group of one."""
        if not dist.is_initialized():
            backend = _BACKENDS.get(self.device.type, "gloo")
            dist.init_process_group(
                backend,
                store=dist.HashStore(),  # type: ignore[attr-defined]  # not in its __all__
                rank=0,
                world_size=1,
            )
        if self._mesh is None:
            self._mesh = make_mesh(self.device.type, self._shape)
        return self._mesh

    def command(self, payload: bytes | None = None) -> bytes:
        """Like `broadcast`, but followers wait for it without a deadline, as long as rank 0 lives."""
        return self._broadcast(payload, self._idle)

    def broadcast(self, payload: bytes | None = None) -> bytes:
        """Rank 0 gives the payload; all ranks get it."""
        return self._broadcast(payload, None)

    def scatter(self, payloads: Sequence[bytes] | None = None) -> bytes:
        """Rank 0 gives one payload for each rank; each rank gets its own."""
        with self._together():
            if payloads is None:
                return _receive(0)
            for rank in range(1, self.size):
                _send(payloads[rank], rank)
            return payloads[0]

    def gather(self, payload: bytes) -> list[bytes]:
        """Rank 0 gets the payloads of all ranks in their order; the others get []."""
        with self._together():
            if self.rank == 0:
                return [payload, *(_receive(rank) for rank in range(1, self.size))]
            _send(payload, 0)
            return []

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, of any shape and dtype; the same bits on every rank. `value` stays as it is."""
        total = value.clone()
        if self.size > 1:
            with self._together():
                dist.all_reduce(total)
        return total

    def close(self) -> None:
        """Leaves the group. Not collective."""
        if dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(_SETTLE_SECONDS)

    def _broadcast(self, payload: bytes | None, group: dist.ProcessGroup | None) -> bytes:
        if self.size == 1:
            return payload or b""
        with self._together():
            length = torch.tensor([len(payload or b"")])
            dist.broadcast(length, 0, group)
            data = torch.empty(int(length), dtype=torch.uint8) if self.rank else _tensor(payload or b"")
            dist.broadcast(data, 0, group)
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


def _send(payload: bytes, to: int) -> None:
    dist.send(torch.tensor([len(payload)]), to)
    dist.send(_tensor(payload), to)


def _receive(source: int) -> bytes:
    length = torch.empty(1, dtype=torch.int64)
    dist.recv(length, source)
    data = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(data, source)
    return data.numpy().tobytes()


def _tensor(payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
