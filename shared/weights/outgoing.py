"""What a rank of the learner sends of a version."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.weights.buckets import bytes_of
from shared.weights.rendezvous import Rows

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
NAMES = {dtype: name for name, dtype in DTYPES.items()}

_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What one rank sends of a version, in order."""

    rows: Mapping[Rows, Tensor]  # all that it has of the version, contiguous
    changes: Mapping[Rows, Tensor]  # uint8 [4 N]: gaps, then words of a delta, in place of rows that take more

    @property
    def nbytes(self) -> int:
        return sum(self.changes.get(rows, tensor).nbytes for rows, tensor in self.rows.items())

    def pieces(self) -> Iterator[tuple[Rows, Tensor, bool]]:
        """What is sent of each rows, uint8 [n], and whether that is what changed in them."""
        for rows, tensor in self.rows.items():
            changes = self.changes.get(rows)
            yield rows, bytes_of(tensor) if changes is None else changes, changes is not None


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of all bytes in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        part = bytes_of(tensor)
        for begin in range(0, part.numel(), _CHUNK_BYTES):
            digest.update(part[begin : begin + _CHUNK_BYTES].cpu().numpy().data)
    return digest.hexdigest()
