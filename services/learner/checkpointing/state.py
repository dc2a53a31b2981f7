"""What a trainer needs to go on, from disk: parameters, AdamW's state and further tensors, as safetensors and JSON.

Whatever ranks wrote it (`snapshot`), each rank reads the slices that it holds, through torch.distributed.checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata

from services.learner.checkpointing.checkpoint import STATE
from services.learner.distributed.ranks import Ranks
from services.learner.model.optimizer import moments_dtype, restore
from shared.errors import InvalidInputError

# In front of the name of each tensor in a checkpoint.
PARAMETERS, OPTIMIZER, TENSORS = "parameters/", "optimizer/", "tensors/"


def load(
    folder: Path,
    ranks: Ranks,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Restores what a snapshot wrote, in place and bit for bit, on any number of ranks; returns its `meta`. Collective.

    Moments of another dtype are converted to that of the optimizer.

    Raises:
        InvalidInputError: names or shapes are those of another model or other settings; nothing was changed.
    """
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    saved: dict[str, Any] = metadata.state_dict_metadata
    state = {PARAMETERS + name: parameter.detach() for name, parameter in parameters.items()}
    state |= {TENSORS + name: tensor for name, tensor in tensors.items()}
    wanted = {name: tensor.shape for name, tensor in state.items()}
    found = {name: held.size for name, held in saved.items() if not name.startswith(OPTIMIZER)}
    if wanted != found:
        differing = sorted(name for name, _ in wanted.items() ^ found.items())
        raise InvalidInputError(
            f"checkpoint {folder} is of another model or other settings: {', '.join(differing[:4])} differ; "
            "use those it was made with, or another run id"
        )
    moments: dict[str, dict[str, Tensor]] = {}
    dtype = moments_dtype(optimizer)
    for name, held in saved.items():
        if name.startswith(OPTIMIZER):
            owner, _, field = name.removeprefix(OPTIMIZER).rpartition("/")
            moments.setdefault(owner, {})[field] = state[name] = _like(parameters[owner], held, dtype)
    _read(state, reader, metadata)
    restore(optimizer, {parameters[name]: fields for name, fields in moments.items()})
    ranks.gather(b"")  # rank 0 goes on when all have loaded
    return about(folder)


def about(folder: Path) -> dict[str, Any]:
    """The `meta` of what a snapshot wrote, without loading anything."""
    meta: dict[str, Any] = json.loads((folder / STATE).read_text())
    return meta


def _read(state: dict[str, Tensor], reader: HuggingFaceStorageReader, metadata: Metadata) -> None:
    """The steps of dcp.load: a rank reads its shards out of whatever shards there are."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(planner.finish_plan(plan), planner).wait()


def _like(parameter: Tensor, held: Any, dtype: torch.dtype) -> Tensor:
    """An empty tensor for optimizer state: divided like its parameter where it has that shape, or on the CPU."""
    if held.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(held.size, dtype=held.properties.dtype)
