"""From packed rows to tensors, and from tensors to the bytes that travel between the ranks of a learner.

Only tokens that the model sampled are response tokens. Given ones are input, as those of the prompt are.

Shapes: N rows of W tokens, B responses, T tokens of the longest response, R response tokens in all, L routed layers,
K experts activated per token. Where turns have advantages of their own, each turn of the model is a response.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from routershift.algorithms.aggregation import Totals
from routershift.routing import layer_subset
from routershift.routing.shift import Routes
from routershift.trajectory import RouterTrace, versions_of
from services.learner.data.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class Part:
    """Which response tokens of a pass a rank computes, where several ranks divide its row: r of R, in their order."""

    tokens: Tensor  # [r] int64, of the R response tokens
    of_tokens: int  # R
    traced: Tensor  # [s] int64, of the S response tokens of samples that are kept for people
    of_traced: int  # S
    missing: Tensor | None  # [R] bool, as in `Routes`


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Sequences stand one after the other in a row, then padding that goes on counting positions.

    Position ids start at 0 again with each sequence: from that come the borders that no token sees across. Padding
    stands after the last sequence of its row, so causal attention hides it. A single row has none.

    Where several ranks divide a row, `rows`, `targets` and `routes` are of this rank's tokens alone, and `rows` count
    from the first of them; all else is of the whole pass. See `services.learner.data.part`.
    """

    input_ids: Tensor  # [N, W] int64
    position_ids: Tensor  # [N, W] int64
    rows: Tensor  # [R] int64: where each response token is predicted, in the flattened [N * W] input
    targets: Tensor  # [R] int64
    mask: Tensor  # [B, T] bool: R response tokens, padded on the right
    behaviour_logprobs: Tensor  # [B, T] float32, 0 on padding
    versions: Tensor  # [R] int64: policy version that sampled the token
    advantages: Tensor  # [B] float32
    filler: Tensor  # [] bool: counts for nothing
    kept: Tensor  # [B] int64: the place in its step of a response that is kept for people, else -1
    routes: Routes | None
    part: Part | None = None  # of this rank; None: all of it

    def padded(self, values: Tensor) -> Tensor:
        """[R] to [B, T], 0 on padding."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)

    @property
    def kept_tokens(self) -> Tensor:
        """[S] int64: where the tokens of the kept responses are in the flattened [B, T]."""
        return (self.mask & (self.kept >= 0)[:, None]).flatten().nonzero()[:, 0]

    @property
    def kept_positions(self) -> Tensor:
        """[S] int64: which of the R response tokens are those of the kept responses."""
        return (self.kept >= 0)[:, None].expand_as(self.mask)[self.mask].nonzero()[:, 0]

    @property
    def missing(self) -> Tensor | None:
        """[R] bool: whether the route of some layer was not recorded; None where routes are not wanted."""
        if self.part is not None:
            return self.part.missing
        return None if self.routes is None else self.routes.missing

    def to(self, device: torch.device) -> "Batch":
        moved: Batch = _moved(self, device)
        return moved


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer update, or the part of it that one rank computes."""

    totals: Totals  # of the whole minibatch, all ranks together
    batches: tuple[Batch, ...]


def collate(micro_batch: MicroBatch, with_routes: bool, step: int, keeps: bool = True) -> Batch:
    """On the CPU.

    Args:
        with_routes: wants a router trace on every sample.
        step: the version of the current weights.
        keeps: False where an earlier pass over these samples was kept for people.
    """
    samples = [weighted.sample for weighted in micro_batch.samples]
    completions = [sample.completion for sample in samples]
    width = max(sum(w.sample.input_tokens for w in row) for row in micro_batch.rows)
    inputs = np.zeros((len(micro_batch.rows), width), dtype=np.int64)
    positions = np.zeros_like(inputs)
    predicted_at = []
    for n, row in enumerate(micro_batch.rows):
        begin = 0
        for weighted in row:
            sample = weighted.sample
            end = begin + sample.input_tokens
            ids = np.concatenate((sample.prompt_ids, sample.trajectory.token_ids))
            inputs[n, begin:end] = ids[: sample.input_tokens]
            stop = width if weighted is row[-1] else end
            positions[n, begin:stop] = np.arange(stop - begin)
            predicted_at.append(n * width + begin + sample.prompt_ids.size - 1 + sample.trajectory.sampled_at)
            begin = end
    lengths = np.array([length for weighted in micro_batch.samples for length in weighted.lengths])
    mask = np.arange(lengths.max()) < lengths[:, None]
    behaviour = np.zeros(mask.shape, dtype=np.float32)
    behaviour[mask] = np.concatenate([c.logprobs for c in completions])
    versions = np.concatenate([versions_of(c.versions) for c in completions])
    rows = np.concatenate(predicted_at)
    is_kept = keeps and not micro_batch.filler
    kept = np.array([w.kept if is_kept else -1 for w in micro_batch.samples for _ in w.lengths], dtype=np.int64)
    routes = None
    if with_routes:
        traced = np.flatnonzero(np.repeat(kept >= 0, lengths))
        routes = _routes([c.router_trace for c in completions], rows, versions == step, traced)
    return Batch(
        input_ids=torch.from_numpy(inputs),
        position_ids=torch.from_numpy(positions),
        rows=torch.from_numpy(rows),
        targets=torch.from_numpy(np.concatenate([c.token_ids for c in completions]).astype(np.int64)),
        mask=torch.from_numpy(mask),
        behaviour_logprobs=torch.from_numpy(behaviour),
        versions=torch.from_numpy(versions),
        advantages=torch.tensor([a for w in micro_batch.samples for a in w.advantages], dtype=torch.float32),
        filler=torch.tensor(micro_batch.filler),
        kept=torch.from_numpy(kept),
        routes=routes,
    )


def encode(updates: Sequence[Update]) -> bytes:
    """As safetensors: names are paths, such as `0/2/routes/rows` for the third pass of the first update."""
    tensors = {"updates": torch.tensor(len(updates))}
    for u, update in enumerate(updates):
        tensors[f"{u}"] = torch.tensor([*astuple(update.totals), len(update.batches)])
        for b, batch in enumerate(update.batches):
            tensors |= _flattened(batch, f"{u}/{b}")
    encoded: bytes = save(tensors)
    return encoded


def decode(payload: bytes) -> list[Update]:
    """The inverse of `encode`."""
    tensors = load(payload)
    updates = []
    for u in range(int(tensors["updates"])):
        *totals, passes = tensors[f"{u}"].tolist()
        updates.append(Update(Totals(*totals), tuple(_batch(tensors, f"{u}/{b}") for b in range(passes))))
    return updates


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if value is None or isinstance(value, int):
        return value
    return type(value)(**{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})


def _flattened(value: Any, prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for field in fields(value):
        inner, name = getattr(value, field.name), f"{prefix}/{field.name}"
        if isinstance(inner, Tensor):
            tensors[name] = inner
        elif inner is not None:
            tensors |= _flattened(inner, name)
    return tensors


def _batch(tensors: dict[str, Tensor], prefix: str) -> Batch:
    def read(kind: Any, path: str) -> dict[str, Any]:
        return {f.name: tensors[f"{path}/{f.name}"] for f in fields(kind) if f"{path}/{f.name}" in tensors}

    routes = read(Routes, f"{prefix}/routes")
    return Batch(**read(Batch, prefix), routes=Routes(**routes) if routes else None)


def _routes(
    traces: Sequence[RouterTrace | None],
    rows: NDArray[np.int64],
    lag_zero: NDArray[np.bool_],
    traced: NDArray[np.int64],
) -> Routes:
    present = [trace for trace in traces if trace is not None]
    if any(trace.is_coded for trace in present):
        present = [trace.coded() for trace in present]
    scores = [trace.log_scores for trace in present if trace.log_scores is not None]
    ids = [trace.expert_ids for trace in present]
    layers = stands_for = None
    if any(trace.layers is not None for trace in present):
        layers, stands_for = _layers(present)
        ids, scores = ([_widened(values, layers.shape[1]) for values in each] for each in (ids, scores))
    expert_ids = np.concatenate(ids)
    return Routes(
        rows=torch.from_numpy(rows.copy()),  # safetensors refuses tensors that share memory
        # torch indexes with few types; one byte is enough for up to 256 experts.
        expert_ids=torch.from_numpy(expert_ids if expert_ids.dtype == np.uint8 else expert_ids.astype(np.int32)),
        log_scores=torch.from_numpy(np.concatenate(scores)),
        missing=torch.from_numpy(np.concatenate([trace.missing.any(axis=1) for trace in present])),
        lag_zero=torch.from_numpy(lag_zero),
        traced=torch.from_numpy(traced) if traced.size else None,
        layers=None if layers is None else torch.from_numpy(layers),
        stands_for=None if stands_for is None else torch.from_numpy(stands_for),
    )


def _layers(traces: Sequence[RouterTrace]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Which layers each of the R tokens has, and for how many each stands, both [R, M] with M the most of a trace."""
    most = max(trace.expert_ids.shape[1] for trace in traces)
    layers, stands_for = [], []
    for trace in traces:
        tokens, chosen = trace.expert_ids.shape[:2]
        counts = layer_subset.stands_for(len(trace.layout.layer_ids), chosen)
        places = np.arange(chosen, dtype=np.uint8) if trace.layers is None else trace.layers
        layers.append(_widened(np.broadcast_to(places, (tokens, chosen)), most, layer_subset.NO_LAYER))
        stands_for.append(_widened(np.broadcast_to(counts, (tokens, chosen)), most))
    return np.concatenate(layers), np.concatenate(stands_for)


def _widened(values: NDArray[Any], width: int, filling: int = 0) -> NDArray[Any]:
    """[T, M, ...] to [T, width, ...]"""
    missing = [(0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, missing, constant_values=filling)
