"""Where the ranks of a learner get the weights that it begins with, when none of them is to hold the whole model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.learner.model import lora
from services.learner.settings import LoraSettings
from shared.models.loading import empty_model, load_config
from shared.models.streaming import Parts


class Source:
    """The tensors of a model by decoder layer: those of its folder, read when they are asked for, and new adapters."""

    def __init__(self, model: PreTrainedModel, folder: Path, settings: LoraSettings, seed: int) -> None:
        """
        Args:
            model: on the meta device, with adapters where the settings have them.
            seed: of the adapters, as `lora.add_lora` draws them for a model that is there.
        """
        self._names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        self._parts = Parts(load_config(folder), folder)
        self._adapters = _adapters(folder, settings, seed) if settings.rank else {}

    @contextmanager
    def __call__(self, layer: int | None) -> Iterator[Mapping[str, Tensor]]:
        """Tensors on the CPU by their names in the model; see `distributed.fsdp.Source`."""
        with self._parts.read(layer) as plain:
            read = dict((*plain.named_parameters(), *plain.named_buffers()))
            named = {name: read[lora.plain_name(name)] for name in self._names if lora.plain_name(name) in read}
            yield {**self._adapters, **{name: tensor for name, tensor in named.items() if not tensor.is_meta}}


def _adapters(folder: Path, settings: LoraSettings, seed: int) -> dict[str, Tensor]:
    """New adapters by name, without memory for the weights that they adapt: only their shapes are read."""
    with torch.device("meta"):
        model = empty_model(load_config(folder), folder, dtype=torch.float32)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(()).expand(parameter.shape))
    lora.add_lora(model, settings, seed)
    return {name: tensor for name, tensor in model.named_parameters() if ".lora_" in name}
