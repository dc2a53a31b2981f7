"""Where the ranks of a learner get the weights that it begins with: each reads what it holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from services.learner.model import lora
from services.learner.settings import LoraSettings
from shared.models.loading import empty_model, load_config
from shared.models.streaming import Parts, local_part


class Source:
    """The tensors of a model by decoder layer: those of its folder, read when they are asked for, and new adapters."""

    def __init__(self, folder: Path, settings: LoraSettings, seed: int) -> None:
        """Args: seed: of the adapters, as `lora.add_lora` draws them for a model that is there."""
        self._parts = Parts(load_config(folder), folder)
        self._adapters = _adapters(folder, settings, seed) if settings.rank else {}

    @contextmanager
    def __call__(self, layer: int | None, like: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """What this rank holds of each; see `distributed.fsdp.Source`."""
        plain = {name: lora.plain_name(name) for name in like if name not in self._adapters}
        new: dict[str, Tensor] = {}
        if layer is None:
            new = {
                name: local_part(whole, held) if isinstance(held := like[name], DTensor) else whole
                for name, whole in self._adapters.items()
            }
        with self._parts.read(layer, {plain[name]: like[name] for name in plain}) as read:
            yield {**new, **{name: read[plain[name]] for name in plain if plain[name] in read}}


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
