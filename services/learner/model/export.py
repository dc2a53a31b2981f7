"""The weights of a model on disk, as its folder has them: gathered tensor by tensor and written file by file.

Rank 0 has one file in memory at a time, and never the model.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_FILE_BYTES = 1 << 30  # above which the next tensor goes into another file
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def write(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes model.safetensors, or shards of it and their index.

    Args:
        folder: made where it is missing.
        tensors: by name, of any device; each is let go of when its file is written.

    Raises:
        OSError, SafetensorError: the disk takes no writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    waiting: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        if size + tensor.nbytes > _FILE_BYTES and waiting:
            shards.append(_save(folder, len(shards), waiting))
            waiting, size = {}, 0
        waiting[name] = tensor.cpu().contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    shards.append(_save(folder, len(shards), waiting))
    if len(shards) == 1:
        (folder / _place(0)).rename(folder / _WHOLE)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _place(number)).rename(folder / final)
        places |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _place(number: int) -> str:
    """The name of a file until it is known how many there are."""
    return f"shard-{number}.safetensors"


def _save(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    save_file(tensors, folder / _place(number), metadata={"format": "pt"})
    return list(tensors)
