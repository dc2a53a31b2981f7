"""The bytes of a transfer of weights: what one sends in buckets, as it leaves and as it arrives.

A bucket is one broadcast. Neither side ever has more than one of them in memory.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shared.weights.rendezvous import Rendezvous

# To connect, once all have come. gloo does not notice the end of one of them meanwhile.
_JOIN_SECONDS = 20.0


class Group:
    """Those who send and receive one version."""

    def __init__(self, store: Any, rank: int, rendezvous: Rendezvous, device: torch.device, bucket_bytes: int) -> None:
        """Connects to the others, beside the groups of torchrun and of vLLM, which belong to others.

        Args:
            store: of the rendezvous.
            device: that buckets go through: a GPU, over NCCL, or the CPU, over gloo.

        Raises:
            RuntimeError: as every method, where another is gone or a deadline has passed.
        """
        self.device = device
        self.bucket_bytes = bucket_bytes
        self._deadline = timedelta(seconds=rendezvous.seconds)
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._deadline
            self._group: Any = dist.ProcessGroupNCCL(store, rank, rendezvous.size, options)
        else:
            joining = timedelta(seconds=min(_JOIN_SECONDS, rendezvous.seconds))
            self._group = dist.ProcessGroupGloo(store, rank, rendezvous.size, joining)

    def broadcast(self, root: int, bucket: Tensor) -> None:
        """Sends a bucket to all others, or fills it."""
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = root, self._deadline
        self._group.broadcast([bucket], options).wait(options.timeout)
        if bucket.is_cuda:
            torch.cuda.current_stream(bucket.device).synchronize()

    def part(self) -> None:
        """Nobody leaves before everybody has everything."""
        options = dist.BarrierOptions()
        options.timeout = self._deadline
        self._group.barrier(options).wait(options.timeout)


class Outflow:
    """The stream of one sender, as that sender fills its buckets."""

    def __init__(self, group: Group, root: int, nbytes: int) -> None:
        """Args: nbytes: of the whole stream."""
        self._group, self._root, self._left = group, root, nbytes
        self._bucket = torch.empty(min(group.bucket_bytes, nbytes), dtype=torch.uint8, device=group.device)
        self._filled = 0

    def write(self, piece: Tensor) -> None:
        """Args: piece: uint8 [n], of any device."""
        while piece.numel():
            size = min(self._bucket.numel(), self._left)
            now, piece = piece[: size - self._filled], piece[size - self._filled :]
            self._bucket[self._filled : self._filled + now.numel()].copy_(now)
            self._filled += now.numel()
            if self._filled == size:
                self._group.broadcast(self._root, self._bucket[:size])
                self._left, self._filled = self._left - size, 0


class Inflow:
    """The stream of one sender, as everybody else gets its buckets."""

    def __init__(self, group: Group, root: int, nbytes: int) -> None:
        """Args: nbytes: of the whole stream."""
        self._group, self._root, self._left = group, root, nbytes
        self._bucket = torch.empty(min(group.bucket_bytes, nbytes), dtype=torch.uint8, device=group.device)
        self._unread = self._bucket[:0]

    def read(self, into: Tensor) -> None:
        """The next bytes. Args: into: uint8 [n], on the CPU."""
        while into.numel():
            self._look()
            count = min(into.numel(), self._unread.numel())
            into[:count].copy_(self._unread[:count])
            into, self._unread = into[count:], self._unread[count:]

    def pass_by(self) -> None:
        """Takes part in all that is left, for others."""
        while self._left:
            self._unread = self._bucket[:0]
            self._look()

    def _look(self) -> None:
        """Gets the next bucket where the last one has been read."""
        if not self._unread.numel():
            self._unread = self._bucket[: min(self._bucket.numel(), self._left)]
            self._group.broadcast(self._root, self._unread)
            self._left -= self._unread.numel()


def bytes_of(tensor: Tensor) -> Tensor:
    """uint8 [n], a view of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8)
