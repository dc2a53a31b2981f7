"""A model folder read by parts, so that nobody has to hold all of it: one decoder layer, or what is beside them.

transformers' own conversion from the names and shapes of the files to those of the model is used, on the tensors of one
part at a time (`transformers.core_model_loading`, 5.19).
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from shared.models.folder import weight_files
from shared.models.loading import LOADING, empty_model

_LAYER = re.compile(r"\blayers\.(\d+)\.")


class Parts:
    """The weights of a model folder, in float32 on the CPU."""

    def __init__(self, config: Any, folder: Path) -> None:
        """Args: config: of the folder, a `PreTrainedConfig`."""
        self._folder = folder
        with torch.device("meta"):
            self._model: PreTrainedModel = empty_model(config, folder, dtype=torch.float32)
        with LOADING:
            _compute_buffers(self._model)
        self._load = LoadStateDictConfig(
            dtype=torch.float32, weight_mapping=get_model_conversion_mapping(self._model, None, None)
        )

    @contextmanager
    def read(self, layer: int | None) -> Iterator[PreTrainedModel]:
        """A model with the tensors of a decoder layer, or with those that are in none; other weights are meta."""
        with ExitStack() as files, LOADING:
            slices: dict[str, Any] = {}
            for path in weight_files(self._folder):
                file: Any = files.enter_context(safe_open(path, framework="pt"))
                slices |= {name: file.get_slice(name) for name in file.keys() if _layer_of(name) == layer}  # noqa: SIM118
            convert_and_load_state_dict_in_model(self._model, slices, self._load)
            if layer is None:
                self._model.tie_weights()
        try:
            yield self._model
        finally:
            for module in self._model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not parameter.is_meta:
                        module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"))


def _layer_of(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _compute_buffers(model: PreTrainedModel) -> None:
    """Buffers that no file has, such as the frequencies of rotary embeddings, are computed by the model's own code."""
    for name, buffer in model.named_non_persistent_buffers():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, torch.empty_like(buffer, device="cpu"))
    model.initialize_weights()
