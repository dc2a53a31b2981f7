"""What training knows of the tokens of some responses, kept for people: read off the passes that it makes anyway.

Shapes: B responses of a micro-batch, S response tokens of those that are kept, L routed layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.learner.data.collate import Batch
from services.learner.loss import Forward, LossParts

_PREFIX = "kept/"


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """One response of T tokens in the first pass over it. None where the settings compute no such thing."""

    advantage: float  # the mean over its tokens, where its turns have advantages of their own
    logprobs: NDArray[np.float32]  # [T], of the policy that the loss is computed from
    entropy: NDArray[np.float32]  # [T] nats
    clipped: NDArray[np.bool_]  # [T]
    log_gamma: NDArray[np.float32] | None  # [T], before its lower bound
    drift: NDArray[np.float32] | None  # [T, L]; NaN where a route is missing


class KeptTokens:
    """Collects them on one rank, a few numbers a token, without waiting for the device before the step has ended."""

    def __init__(self) -> None:
        self._passes: list[dict[str, Tensor]] = []

    def add(self, batch: Batch, tokens: Tensor, forward: Forward, parts: LossParts) -> None:
        """Takes a forward pass.

        Args:
            batch: as it was on the CPU.
            tokens: [S] `Batch.kept_tokens`, on the device of the forward pass.
        """
        chosen = batch.kept >= 0
        found = {
            "places": batch.kept[chosen],
            "lengths": batch.mask.sum(dim=1)[chosen],
            "advantages": batch.advantages[chosen],
            "logprobs": _at(forward.logprobs, tokens),
            "entropy": _at(forward.entropy, tokens),
            "clipped": _at(parts.result.clipped, tokens),
        }
        if forward.shift is not None:
            found["log_gamma"] = forward.shift.log_gamma.index_select(0, batch.kept_positions.to(tokens.device))
            if forward.shift.traced is not None:
                found["drift"] = forward.shift.traced
        self._passes.append(found)

    def tensors(self) -> dict[str, Tensor]:
        """Everything on the CPU, contiguous, by names that no diagnostic has: what a rank sends to rank 0."""
        return {
            f"{_PREFIX}{i}/{name}": tensor.contiguous().cpu()
            for i, found in enumerate(self._passes)
            for name, tensor in found.items()
        }


def kept_tokens(ranks: Sequence[Mapping[str, Tensor]]) -> dict[int, TrainedTokens]:
    """By the place of each sample in its step; from the `tensors` of every rank."""
    kept: dict[int, TrainedTokens] = {}
    for rank in ranks:
        passes: dict[str, dict[str, Tensor]] = {}
        for path, tensor in rank.items():
            if path.startswith(_PREFIX):
                number, _, name = path.removeprefix(_PREFIX).partition("/")
                passes.setdefault(number, {})[name] = tensor
        for found in passes.values():
            kept |= _of_pass(found)
    return kept


def _of_pass(found: Mapping[str, Tensor]) -> dict[int, TrainedTokens]:
    """The turns of a response, where it has several rows, stand side by side."""
    places, rows = torch.unique_consecutive(found["places"], return_inverse=True)
    lengths = found["lengths"].new_zeros(places.shape).index_add_(0, rows, found["lengths"])
    sums = found["advantages"] * found["lengths"]
    advantages = found["advantages"].new_zeros(places.shape).index_add_(0, rows, sums) / lengths
    ends = lengths.cumsum(0)[:-1].tolist()

    def column(name: str) -> list[Any]:
        if name not in found:
            return [None] * len(lengths)
        return np.split(found[name].numpy(), ends)

    names = ("logprobs", "entropy", "clipped", "log_gamma", "drift")
    columns = zip(advantages.tolist(), *map(column, names), strict=True)
    return {place: TrainedTokens(*each) for place, each in zip(places.tolist(), columns, strict=True)}


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    """[B, T] to [S], without gradient."""
    return values.detach().flatten().index_select(0, tokens)
