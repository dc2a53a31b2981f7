"""Weights of a model folder, as the ranks of a learner hold and send them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from services.learner.checkpointing.held import Held
from shared.weights.outgoing import NAMES, Outgoing
from shared.weights.rendezvous import Rows, TensorSpec

CPU = torch.device("cpu")
Tensors = Mapping[str, torch.Tensor]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]


def changed(tensors: Tensors, share: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """With another last bit in so many entries, of each tensor one at least."""
    random = torch.Generator().manual_seed(seed)
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in made.values():
        last = tensor.view(-1).view(torch.uint8)[:: tensor.element_size()]
        flips = torch.rand(last.shape, generator=random) < share
        flips[0] = True
        last ^= flips.to(torch.uint8)
    return made


def rows_of(tensors: Tensors, rank: int = 0, ranks: int = 1) -> Iterator[tuple[Rows, torch.Tensor]]:
    """What one of several ranks holds: neighbouring rows of each tensor, of small ones none."""
    for name, tensor in tensors.items():
        parts = tensor.tensor_split(ranks) if tensor.ndim else (tensor,)
        if rank < len(parts) and parts[rank].numel():
            first = sum(len(part) for part in parts[:rank])
            yield Rows(name, first, len(parts[rank]) if tensor.ndim else 1), parts[rank]


def outgoing(tensors: Tensors, rank: int = 0, ranks: int = 1, *, since: Tensors | None = None) -> Outgoing:
    """All that a rank sends of a version, or what changed since another."""
    held = Held(keeps_changes=True)
    for version in (tensors,) if since is None else (since, tensors):
        held.take(rows_of(version, rank, ranks))
    return held.outgoing(whole=since is None)


@dataclass
class Holding:
    """Stands for the model of a trainer of one rank: `services.learner.model.parts.Parts`."""

    tensors: Tensors

    def specs(self) -> list[TensorSpec]:
        return specs_of(self.tensors)

    def rows(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        return rows_of(self.tensors)
