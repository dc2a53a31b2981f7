"""Safetensors files that are written and hashed in one pass, without a copy of what they hold.

What a file says of the place of its shards is what torch.distributed.checkpoint writes there and reads
(`torch.distributed.checkpoint._hf_utils`, 2.13), so any number of ranks loads them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 24
_ALIGNMENT = 8
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a tensor, and where it begins in the whole."""

    part: Tensor  # on any device
    offset: Sequence[int]  # of each dimension


def write(path: Path, shards: Mapping[str, Shard]) -> dict[str, int | str]:
    """Writes a file, durable on return, and gives its size in bytes and its SHA-256, by these names.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    # The widest first, so that each begins at a multiple of its own width.
    ordered = sorted(shards.items(), key=lambda each: -each[1].part.element_size())
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("wb") as file:
            for view in chain([memoryview(_header(ordered))], (_bytes(shard.part) for _, shard in ordered)):
                for begin in range(0, len(view), _CHUNK_BYTES):
                    chunk = view[begin : begin + _CHUNK_BYTES]
                    file.write(chunk)
                    digest.update(chunk)
                size += len(view)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return {"size": size, "sha256": digest.hexdigest()}


def _header(ordered: Sequence[tuple[str, Shard]]) -> bytes:
    places = {name: {"saved_offsets": list(shard.offset)} for name, shard in ordered}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
    described: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, shard in ordered:
        begin, end = end, end + shard.part.nbytes
        described[name] = {
            "dtype": _DTYPES[shard.part.dtype],
            "shape": list(shard.part.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
