"""The processes of one learner, as torchrun starts them: who we are, and bytes and sums between us."""

import os
import time
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from services.learner.distributed.channel import IDLE, Channel
from services.learner.distributed.context_parallel import Context
from services.learner.distributed.mesh import Mesh, make_mesh
from services.learner.distributed.settings import MeshShape
from shared.errors import InvalidInputError
from shared.process.orphans import die_with_parent

# Others wait this long while one rank loads a model or writes a checkpoint. The end of a process is seen at once.
_DEADLINE = timedelta(minutes=30)
# gloo's threads drop their last tensors after the work is done, and abort a process that ends meanwhile.
_SETTLE_SECONDS = 1.0
_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl"}


class Ranks(Channel):
    """The ranks and this one among them, with the channel of the thread that trains."""

    device: torch.device  # of the model on this rank
    beside: Channel  # of the thread that writes a checkpoint meanwhile
    sending: Channel  # of the thread that sends weights meanwhile

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        super().__init__(rank, size)
        self.device = device
        self.beside = Channel(rank, size)
        self.sending = Channel(rank, size)
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
            ranks._idle = dist.new_group(backend="gloo", timeout=IDLE)
            ranks.beside = Channel.open_beside(rank, size, deadline)
            ranks.sending = Channel.open_beside(rank, size, deadline)
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

    @property
    def context(self) -> Context | None:
        """Those that divide every row with this one; None where rows are whole. Collective as `mesh` is."""
        if self._shape.context == 1 or self.mesh.context is None:
            return None
        return Context(self.mesh.context.get_group())

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
