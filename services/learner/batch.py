"""From groups of scored rollouts to padded tensors, and from a minibatch to micro-batches.

Shapes: B responses, S tokens of the longest prompt and response, T tokens of the longest response, R response
tokens in all, L routed layers, K experts activated per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.learner.router_shift import Routes
from shared.trajectory import Completion, RouterTrace, versions_of


@dataclass(frozen=True, slots=True)
class Sample:
    """A scored response."""

    prompt_ids: NDArray[np.int32]  # [P], at least one token
    completion: Completion
    reward: float

    @property
    def input_tokens(self) -> int:
        """What the model reads: everything but the last token, which predicts nothing."""
        return self.prompt_ids.size + self.completion.token_ids.size - 1


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt."""

    group_id: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sample and its advantage within its group."""

    sample: Sample
    advantage: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded on the right. Response token t is predicted at input position P - 1 + t, and so is its router row."""

    input_ids: Tensor  # [B, S] int64
    positions: Tensor  # [B, T] int64: where each response token is predicted; 0 on padding
    targets: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    behaviour_logprobs: Tensor  # [B, T] float32
    versions: Tensor  # [B, T] int64: policy version that sampled the token; -1 on padding
    advantages: Tensor  # [B] float32
    routes: Routes | None


def micro_batches(samples: Sequence[Weighted], max_tokens: int) -> list[list[Weighted]]:
    """Cuts so that padded tokens stay within `max_tokens`, or one sample alone; similar lengths come together."""
    batches: list[list[Weighted]] = []
    for weighted in sorted(samples, key=lambda w: w.sample.input_tokens):
        if batches and (len(batches[-1]) + 1) * weighted.sample.input_tokens <= max_tokens:
            batches[-1].append(weighted)
        else:
            batches.append([weighted])
    return batches


def collate(samples: Sequence[Weighted], with_routes: bool, device: torch.device) -> Batch:
    """`with_routes` wants a router trace on every sample."""
    completions = [weighted.sample.completion for weighted in samples]
    lengths = np.array([c.token_ids.size for c in completions])
    starts = np.array([weighted.sample.prompt_ids.size - 1 for weighted in samples])
    mask = np.arange(lengths.max()) < lengths[:, None]
    positions = np.where(mask, starts[:, None] + np.arange(lengths.max()), 0)
    inputs = [np.concatenate((w.sample.prompt_ids, w.sample.completion.token_ids[:-1])) for w in samples]

    def tensor(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device)

    width = max(row.size for row in inputs)
    routes = None
    if with_routes:
        rows = (np.arange(len(samples))[:, None] * width + positions)[mask]
        routes = _routes([c.router_trace for c in completions], rows, device)
    return Batch(
        input_ids=tensor(_pad(inputs, width, np.int64)),
        positions=tensor(positions),
        targets=tensor(_pad([c.token_ids for c in completions], lengths.max(), np.int64)),
        mask=tensor(mask),
        behaviour_logprobs=tensor(_pad([c.logprobs for c in completions], lengths.max(), np.float32)),
        versions=tensor(_pad([versions_of(c.versions) for c in completions], lengths.max(), np.int64, fill=-1)),
        advantages=torch.tensor([w.advantage for w in samples], dtype=torch.float32, device=device),
        routes=routes,
    )


def _routes(traces: Sequence[RouterTrace | None], rows: NDArray[np.int64], device: torch.device) -> Routes:
    present = [trace for trace in traces if trace is not None]
    return Routes(
        rows=torch.from_numpy(rows).to(device),
        expert_ids=torch.from_numpy(np.concatenate([t.expert_ids for t in present]).astype(np.int32)).to(device),
        log_scores=torch.from_numpy(np.concatenate([t.log_scores for t in present])).to(device),
        missing=torch.from_numpy(np.concatenate([t.missing.any(axis=1) for t in present])).to(device),
    )


def _pad(
    rows: Sequence[NDArray[np.generic]], width: int, dtype: type[np.generic], fill: int = 0
) -> NDArray[np.generic]:
    padded = np.full((len(rows), width), fill, dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : row.size] = row
    return padded
