"""A model folder read by parts, so that nobody has to hold all of it: one decoder layer, or what is beside them.

transformers' own conversion from the names and shapes of the files to those of the model is used, on the tensors of one
part at a time (`transformers.core_model_loading`, 5.19). It reads no more of a tensor than the shard that is asked for,
where files hold it as the model does, or each expert by itself.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Replicate
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from shared.models.folder import weight_files
from shared.models.loading import LOADING, empty_model

_LAYER = re.compile(r"\blayers\.(\d+)\.")


class Parts:
    """The weights of a model folder, in float32."""

    def __init__(self, config: Any, folder: Path) -> None:
        """Args: config: of the folder, a `PreTrainedConfig`."""
        with torch.device("meta"):
            self._model: PreTrainedModel = empty_model(config, folder, dtype=torch.float32)
        with LOADING:
            _compute_buffers(self._model)
        self._mapping = get_model_conversion_mapping(self._model, None, None)
        self._load = LoadStateDictConfig(dtype=torch.float32, weight_mapping=self._mapping)
        self._names: dict[int | None, dict[Path, list[str]]] = {}  # in the files, by layer
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    self._names.setdefault(_layer_of(name), {}).setdefault(path, []).append(name)

    @contextmanager
    def read(self, layer: int | None, like: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """What this rank holds of the tensors of a decoder layer, or of those that are in none, by name.

        Buffers of the whole model that no file has are among them.

        Args:
            like: the tensors of the model, by name; of a DTensor its local shard is given.
        """
        with ExitStack() as files, LOADING:
            slices: dict[str, Any] = {}
            for path, names in self._names.get(layer, {}).items():
                file: Any = files.enter_context(safe_open(path, framework="pt"))
                slices |= {name: file.get_slice(name) for name in names}
            self._shard(slices, like)
            convert_and_load_state_dict_in_model(self._model, slices, self._load)
            if layer is None:
                self._model.tie_weights()
        try:
            read = (*self._model.named_parameters(), *self._model.named_buffers())
            yield {name: _local(tensor, like.get(name)) for name, tensor in read if not tensor.is_meta}
        finally:
            for module in self._model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and (isinstance(parameter, DTensor) or not parameter.is_meta):
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                        module._parameters[name] = nn.Parameter(empty)

    def _shard(self, slices: dict[str, Any], like: Mapping[str, Tensor]) -> None:
        """Has transformers read shards, where that is the same as a shard of what it would make of whole tensors."""
        whole = self._model.state_dict()
        renamings = [each for each in self._mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in self._mapping if isinstance(each, WeightConverter)]
        by_source = {pattern: each for each in converters for pattern in each.source_patterns}
        for name in list(slices):
            made, pattern = rename_source_key(name, renamings, converters, self._model.base_model_prefix, whole)
            wanted = like.get(made)
            if not isinstance(wanted, DTensor) or not (pattern is None or _keeps_rows(by_source[pattern])):
                continue
            if wanted.to_local().numel() == 0:
                del slices[name]
            elif _is_by_rows(wanted):
                path, _, leaf = made.rpartition(".")
                self._model.get_submodule(path)._parameters[leaf] = nn.Parameter(wanted.detach(), False)


def _keeps_rows(converter: WeightConverter) -> bool:
    """Whether the first dimension of what it makes is that of its sources, or one source for each of its rows."""
    return len(converter.target_patterns) == 1 and all(
        (isinstance(op, MergeModulelist) and op.dim == 0) or (isinstance(op, Concatenate) and op.dim > 0)
        for op in converter.operations
    )


def _is_by_rows(tensor: DTensor) -> bool:
    """Whether it is divided along its first dimension alone."""
    return all(isinstance(each, Replicate) or getattr(each, "dim", None) == 0 for each in tensor.placements)


def local_part(whole: Tensor, like: DTensor) -> Tensor:
    """This rank's shard of a tensor that is divided like another of its shape; a view."""
    (chunk,) = like.__create_chunk_list__()  # type: ignore[no-untyped-call]  # torch gives it no types
    for dim, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        whole = whole.narrow(dim, offset, size)
    return whole


def _local(tensor: Tensor, like: Tensor | None) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return local_part(tensor, like) if isinstance(like, DTensor) else tensor


def _layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _compute_buffers(model: PreTrainedModel) -> None:
    """Buffers that no file has, such as the frequencies of rotary embeddings, are computed by the model's own code."""
    for name, buffer in model.named_non_persistent_buffers():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()
