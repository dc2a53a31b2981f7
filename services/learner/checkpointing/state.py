"""What a trainer needs to go on, from disk: parameters, AdamW's state and further tensors, as safetensors and JSON.

Whatever ranks wrote it (`snapshot`), each rank reads the slices that it holds, through torch.distributed.checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata

from services.learner.checkpointing.checkpoint import FORMAT, STATE
from services.learner.distributed.ranks import Ranks
from services.learner.model.moments import Layout
from services.learner.model.optimizer import STEP, AdamW
from shared.errors import InvalidInputError

# In front of the name of each tensor in a checkpoint.
PARAMETERS, OPTIMIZER, TENSORS = "parameters/", "optimizer/", "tensors/"


def load(
    folder: Path,
    ranks: Ranks,
    parameters: Mapping[str, Tensor],
    optimizer: AdamW,
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Restores what a snapshot wrote, in place and bit for bit, on any number of ranks; returns its `meta`. Collective.

    Moments in another form are converted to that of the optimizer.

    Raises:
        InvalidInputError: names or shapes are those of another model or other settings; nothing was changed.
    """
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    saved: dict[str, Any] = metadata.state_dict_metadata
    state = {PARAMETERS + name: weight for name, weight in optimizer.weights(parameters).items()}
    state |= {TENSORS + name: tensor for name, tensor in tensors.items()}
    wanted = {name: tensor.shape for name, tensor in state.items()}
    found = {name: held.size for name, held in saved.items() if not name.startswith(OPTIMIZER)}
    if wanted != found:
        differing = sorted(name for name, _ in wanted.items() ^ found.items())
        raise InvalidInputError(
            f"checkpoint {folder} is of another model or other settings: {', '.join(differing[:4])} differ; "
            "use those it was made with, or another run id"
        )
    layouts: dict[str, Layout] = {}
    for name, held in saved.items():
        if name.startswith(OPTIMIZER) and not name.endswith(f"/{STEP}"):
            owner, _, field = name.removeprefix(OPTIMIZER).rpartition("/")
            layouts.setdefault(owner, {})[field] = held.size, held.properties.dtype
    read = {owner: optimizer.empty_state(parameters[owner], layout) for owner, layout in layouts.items()}
    state |= {f"{OPTIMIZER}{owner}/{field}": t for owner, fields in read.items() for field, t in fields.items()}
    _read(state, reader, metadata)
    optimizer.adopt({parameters[owner]: fields for owner, fields in read.items()})
    ranks.gather(b"")  # rank 0 goes on when all have loaded
    return about(folder)


def about(folder: Path) -> dict[str, Any]:
    """What a snapshot says of itself, without loading anything. Raises InvalidInputError: its format is a later one."""
    found: dict[str, Any] = json.loads((folder / STATE).read_text())
    if (written := int(found.get("format", 1))) > FORMAT:
        raise InvalidInputError(
            f"checkpoint {folder} has format {written}, and this version reads up to {FORMAT}: a later one wrote it; "
            "go on with that, or bring back a backup from before"
        )
    return found


def _read(state: dict[str, Tensor], reader: HuggingFaceStorageReader, metadata: Metadata) -> None:
    """The steps of dcp.load: a rank reads its shards out of whatever shards there are."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reader.read_data(planner.finish_plan(plan), planner).wait()
