"""What a trainer needs to go on, on disk: parameters, AdamW's state and further tensors, as safetensors and JSON.

Each rank writes the shards that it holds through torch.distributed.checkpoint; any number of ranks can read them.
"""

import json
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from services.learner.checkpointing.checkpoint import STATE
from services.learner.distributed.ranks import Ranks
from shared.errors import InvalidInputError

_PARAMETERS, _OPTIMIZER, _TENSORS = "parameters/", "optimizer/", "tensors/"
_FILE_BYTES = 1 << 30  # a file is composed in memory before it is written


def save(
    folder: Path,
    ranks: Ranks,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> None:
    """Writes everything into `folder`, which all ranks see; collective, and durable on return on rank 0.

    Args:
        parameters: those of the optimizer, by name.
        tensors: further small state, equal on all ranks; rank 0 writes it.
        meta: JSON; rank 0 writes it.

    Raises:
        OSError: on rank 0, where some rank could not write. The others return and can go on.
    """
    state = {_PARAMETERS + name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state |= {f"{_OPTIMIZER}{name}/{field}": value for field, value in optimizer.state[parameter].items()}
    state |= {_TENSORS + name: tensor for name, tensor in tensors.items()}
    failure = b""
    try:
        _write({name: tensor for name, tensor in state.items() if _is_ours(tensor, ranks)}, folder, ranks)
        if ranks.rank == 0:
            (folder / STATE).write_text(json.dumps(dict(meta), indent=1))
    except OSError as error:
        place = error.filename and str(error.filename)
        failure = json.dumps([error.errno, f"rank {ranks.rank}: {error.strerror}", place]).encode()
    failures = ranks.gather(failure)
    ranks.broadcast(b"")  # no rank goes on before all have written
    for failed in filter(None, failures):
        raise OSError(*json.loads(failed))


def load(
    folder: Path,
    ranks: Ranks,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Restores what `save` wrote, in place and bit for bit, on any number of ranks; returns its `meta`. Collective.

    Raises:
        InvalidInputError: names or shapes are those of another model or other settings; nothing was changed.
    """
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    saved: dict[str, Any] = metadata.state_dict_metadata
    state = {_PARAMETERS + name: parameter.detach() for name, parameter in parameters.items()}
    state |= {_TENSORS + name: tensor for name, tensor in tensors.items()}
    wanted = {name: tensor.shape for name, tensor in state.items()}
    found = {name: held.size for name, held in saved.items() if not name.startswith(_OPTIMIZER)}
    if wanted != found:
        differing = sorted(name for name, _ in wanted.items() ^ found.items())
        raise InvalidInputError(
            f"checkpoint {folder} is of another model or other settings: {', '.join(differing[:4])} differ; "
            "use those it was made with, or another run id"
        )
    moments: dict[str, dict[str, Tensor]] = {}
    for name, held in saved.items():
        if name.startswith(_OPTIMIZER):
            owner, _, field = name.removeprefix(_OPTIMIZER).rpartition("/")
            moments.setdefault(owner, {})[field] = state[name] = _like(parameters[owner], held)
    _read(state, reader, metadata)
    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.load_state_dict(
        {
            "state": {i: moments[name] for i, name in enumerate(order) if name in moments},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
    ranks.gather(b"")  # rank 0 goes on when all have loaded
    return about(folder)


def about(folder: Path) -> dict[str, Any]:
    """The `meta` of what `save` wrote, without loading anything."""
    meta: dict[str, Any] = json.loads((folder / STATE).read_text())
    return meta


def _is_ours(tensor: Tensor, ranks: Ranks) -> bool:
    """A rank writes its shards; what several ranks hold alike, the first of them writes."""
    if not isinstance(tensor, DTensor):
        return ranks.rank == 0
    place = tensor.device_mesh.get_coordinate() or ()
    is_first = all(at == 0 for at, held in zip(place, tensor.placements, strict=True) if held.is_replicate())
    return is_first and tensor.to_local().numel() > 0


def _write(state: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """The steps of dcp.save without its exchange of plans, which pickles: shards never overlap, so none is needed."""
    sizes = [_local(tensor).nbytes for tensor in state.values()]
    files = {name: 1 + end // _FILE_BYTES for name, end in zip(state, accumulate(sizes), strict=True)}
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, is_coordinator=ranks.rank == 0)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    own = writer.prepare_global_plan([plan] * ranks.size)[ranks.rank]
    writer.write_data(planner.finish_plan(own), planner).wait()


def _read(state: dict[str, Tensor], reader: HuggingFaceStorageReader, metadata: Metadata) -> None:
    """The steps of dcp.load: a rank reads its shards out of whatever shards there are."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(planner.finish_plan(plan), planner).wait()


def _like(parameter: Tensor, held: Any) -> Tensor:
    """An empty tensor for optimizer state: divided like its parameter where it has that shape, or on the CPU."""
    if held.size == parameter.shape:
        return torch.empty_like(parameter, dtype=held.properties.dtype, requires_grad=False)
    return torch.empty(held.size, dtype=held.properties.dtype)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
