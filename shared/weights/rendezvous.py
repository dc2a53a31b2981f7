"""Where and when a version of the weights is broadcast: the types of `shared.weights.broadcast`, without torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from routershift.v1 import trajectory_pb2 as pb


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver must know of a tensor before it comes."""

    name: str
    dtype: str  # by the names of the safetensors format; `shared.weights.outgoing.DTYPES` has those that travel
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor. The names of dtypes have their bits in them: BF16, F8_E4M3."""
        bits = re.search(r"\d+", self.dtype)
        return prod(self.shape) * int(bits[0] if bits else 0) // 8


@dataclass(frozen=True, slots=True)
class Rows:
    """Neighbouring rows of a tensor: indices of its first dimension. A scalar is one row."""

    name: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the group of one version meets: the ranks of the learner that send, the first of which opens it, and all
    workers.
    """

    host: str
    port: int
    senders: int  # their ranks come first
    size: int  # senders and all workers
    seconds: float  # for all to come, and for each bucket
    base: int | None = None  # version from which changes are sent; None: all is


def encode(
    rendezvous: Rendezvous, first_ranks: Mapping[str, int], specs: Sequence[TensorSpec], size_bytes: int
) -> pb.WeightsBroadcast:
    """
    Args:
        first_ranks: by the name of a replica of generation, the rank of its first worker.
        size_bytes: sent to each worker.
    """
    return pb.WeightsBroadcast(
        host=rendezvous.host,
        port=rendezvous.port,
        senders=rendezvous.senders,
        size=rendezvous.size,
        seconds=rendezvous.seconds,
        base=rendezvous.base,
        first_ranks=first_ranks,
        tensors=[pb.WeightsTensor(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in specs],
        size_bytes=size_bytes,
    )


def decode(broadcast: pb.WeightsBroadcast) -> tuple[Rendezvous, list[TensorSpec]]:
    """What `encode` was given, ranks and bytes left out."""
    base = broadcast.base if broadcast.HasField("base") else None
    rendezvous = Rendezvous(broadcast.host, broadcast.port, broadcast.senders, broadcast.size, broadcast.seconds, base)
    return rendezvous, [TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)) for tensor in broadcast.tensors]
