"""What a rank keeps of the version that was published last: its part, in the dtype of the model folder.

It is sent from here while training goes on, to replicas that are there and to those that come later, and what changed
from it to the next version is found by comparing the two. It stays on the device of the weights, and takes there what
the part takes in the model folder: 2 bytes for each weight of this rank in bfloat16.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.weights import delta
from shared.weights.outgoing import Outgoing
from shared.weights.rendezvous import Rows


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that one receiver gets of a version."""

    whole: int
    changes: int | None  # since the version before; None: nothing is known of one


class Held:
    """One version at a time. Nothing may be sent while the next one is taken."""

    def __init__(self, keeps_changes: bool) -> None:
        """Args: keeps_changes: compare each version with the one before."""
        self._keeps_changes = keeps_changes
        self._rows: dict[Rows, Tensor] = {}
        self._changes: dict[Rows, Tensor] | None = None

    def take(self, rows: Iterable[tuple[Rows, Tensor]]) -> Sizes:
        """The next version. Args: rows: of this rank, in the same order each time."""
        is_first = not self._rows
        self._changes = None if is_first or not self._keeps_changes else {}
        for place, new in rows:
            if is_first:
                self._rows[place] = new.clone()
                continue
            old = self._rows[place]
            if self._changes is not None and (changes := _changes(old, new)) is not None:
                self._changes[place] = changes
            old.copy_(new)
        changed = None if self._changes is None else Outgoing(self._rows, self._changes).nbytes
        return Sizes(sum(tensor.nbytes for tensor in self._rows.values()), changed)

    def outgoing(self, *, whole: bool) -> Outgoing:
        """What is sent of the version: all of it, or what changed since the one before."""
        return Outgoing(self._rows, {} if whole or self._changes is None else self._changes)


def _changes(old: Tensor, new: Tensor) -> Tensor | None:
    """uint8 [4 N], on the CPU: gaps and words of a delta; None where whole rows take no more."""
    if old.element_size() % delta.WORD.itemsize:
        return None
    before, after = (tensor.reshape(-1).view(torch.int16) for tensor in (old, new))
    indices = delta.reachable(torch.nonzero(before != after).view(-1).cpu().numpy())
    if 2 * len(indices) >= after.numel():
        return None
    words = after[torch.from_numpy(indices).to(after.device)].cpu().numpy().view(delta.WORD)
    return torch.from_numpy(np.concatenate([delta.gaps_of(indices), words]).view(np.uint8))
